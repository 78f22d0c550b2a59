"""One function per kind of artifact: `build(work, needs, params, session)` writes files and returns notes.

Importing these modules loads nothing heavy; what a builder needs is imported when it runs.
"""
