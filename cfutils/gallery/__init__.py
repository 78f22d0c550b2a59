"""The page that a run ends with, figures/PROFILE/index.html: verdicts, figures, tables, samples, items, tokens.

Takes what the store, the shipped results and the folder of figures hold, computes no score, and builds nothing. What is
neither here nor shipped is named on the page. Everything is in one file that opens without a server or a network; the
figures and the notebooks as HTML lie beside it.
"""
