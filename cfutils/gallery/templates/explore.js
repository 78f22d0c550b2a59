// Filters and tables of the page. Data become text through textContent alone; no markup is ever made from them.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const STEP = 40; // rows that are added at a time
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(3);
  const has = (text, wanted) => text.toLowerCase().includes(wanted);

  // State of each explorer in the address: #items?run=ft&task=piqa&change=lost
  const place = () => {
    const [name, query] = location.hash.slice(1).split("?");
    return [name, new URLSearchParams(query || "")];
  };
  const remember = (name, state) => {
    const stated = Object.entries(state).filter(([, value]) => value !== "");
    const hash = "#" + name + (stated.length ? "?" + new URLSearchParams(stated) : "");
    try { history.replaceState(null, "", hash); } catch { /* a frame without an address of its own */ }
  };

  // A form whose every change calls `draw(state)`. options: by control, [value, text, group, whether it is the default];
  // initial: what is set where the address says nothing.
  function explorer(name, options, draw, initial = {}) {
    const form = document.querySelector(`form[data-explorer=${name}]`);
    if (!form) return;
    for (const [key, choices] of Object.entries(options)) {
      const select = form.elements[key];
      let group = null;
      for (const [value, text, label, chosen] of choices) {
        if (label && (!group || group.label !== label)) {
          group = select.appendChild(document.createElement("optgroup"));
          group.label = label;
        }
        (label ? group : select).appendChild(new Option(text, value, chosen, chosen));
      }
    }
    const read = () => Object.fromEntries(new FormData(form));
    const set = (values) => {
      for (const [key, value] of values) {
        const control = form.elements[key];
        if (!control) continue;
        const before = control.value;
        control.value = value;
        if (control.tagName === "SELECT" && control.selectedIndex < 0) {
          const close = [...control.options].find((o) => o.value.split(",")[0] === value);
          control.value = close ? close.value : before;
        }
      }
    };
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { remember(name, read()); draw(read()); });
    const follow = () => {
      const [where, query] = place();
      if (where !== name || ![...query].length) return false;
      form.reset();
      set(query);
      return true;
    };
    const linked = follow();
    if (!linked) set(Object.entries(initial));
    draw(read());
    if (linked) document.getElementById(name).scrollIntoView();
    addEventListener("hashchange", () => {
      if (follow()) { draw(read()); document.getElementById(name).scrollIntoView(); }
    });
  }

  // Show rows a step at a time; `render(row)` makes a node.
  function listed(target, rows, render, step, wrap) {
    let shown = 0;
    const holder = wrap ? wrap() : { node: target, body: target };
    const more = make("button", "more");
    more.type = "button";
    const add = () => {
      for (const row of rows.slice(shown, shown + step)) holder.body.appendChild(render(row));
      shown = Math.min(rows.length, shown + step);
      more.hidden = shown >= rows.length;
      more.textContent = `Show ${Math.min(step, rows.length - shown)} more of ${rows.length - shown}`;
    };
    target.replaceChildren();
    if (wrap) target.appendChild(holder.node);
    add();
    more.addEventListener("click", add);
    target.after(more);
    return more;
  }
  const buttons = {};
  const show = (name, ...rest) => {
    if (buttons[name]) buttons[name].remove();
    buttons[name] = listed(document.getElementById(`${name}-rows`), ...rest);
  };

  const CHANGES = [
    ["lost", "Right → wrong"], ["gained", "Wrong → right"], ["kept", "Stayed right"], ["never", "Stayed wrong"], ["all", "All"],
  ];
  const kind = (before, after) =>
    before === null || after === null ? "unknown"
      : before > 0.5 ? (after > 0.5 ? "kept" : "lost") : after > 0.5 ? "gained" : "never";

  function items({ items, runs, said, start }) {
    const tasks = [...new Map(items.map(([task, name]) => [task, name]))];
    const fields = document.querySelector("form[data-explorer=items] .segments");
    const counts = {};
    for (const [value, text] of CHANGES) {
      const label = fields.appendChild(make("label"));
      const input = label.appendChild(make("input"));
      Object.assign(input, { type: "radio", name: "change", value, defaultChecked: value === "lost" });
      label.append(text + " ");
      counts[value] = label.appendChild(make("b"));
    }
    const verdict = (value, text, name) => {
      const cell = make("td", value === null ? "" : value > 0.5 ? "right" : "wrong");
      cell.dataset.name = name;
      if (value !== null) {
        const part = value > 0 && value < 1 ? ` (${Math.round(100 * value)} % of its answers)` : "";
        cell.append((value > 0.5 ? "✓ right" : "✗ wrong") + part);
      }
      if (text) cell.appendChild(make("span", "said", (text[0] ? `${text[0].trim()} ⇒ ` : "") + (text[1] === null ? "(no answer)" : text[1].trim())));
      return cell;
    };
    const row = (one) => {
      const line = make("tr");
      const [task, item, question, answer, before, bits] = one.item;
      const head = line.appendChild(make("th", "", `${task} `));
      head.scope = "row";
      head.appendChild(make("span", "muted", item));
      line.appendChild(make("td", "text question", question || "—"));
      const gold = line.appendChild(make("td", "text answer", answer));
      gold.dataset.name = "right answer";
      line.append(verdict(before, one.said[0], "before"), verdict(one.right, one.said[1], "after"));
      const cell = line.appendChild(make("td", "number"));
      cell.dataset.name = "bits per byte";
      if (bits !== null && one.bits !== null) {
        cell.append(`${bits.toFixed(2)} → ${one.bits.toFixed(2)} `);
        cell.appendChild(make("span", one.bits > bits ? "worse" : "better", signed(one.bits - bits)));
      }
      return line;
    };
    const wrap = () => {
      const node = make("div", "scroll");
      Object.assign(node, { tabIndex: 0, role: "region", ariaLabel: "Items" });
      const table = node.appendChild(make("table", "items"));
      const heads = table.createTHead().insertRow();
      for (const text of ["task", "question", "right answer", "before", "after", "bits per byte of it"]) {
        const th = heads.appendChild(make("th", "", text));
        th.scope = "col";
      }
      return { node, body: table.createTBody() };
    };
    const by = {
      worse: (a, b) => b.moved - a.moved, better: (a, b) => a.moved - b.moved, order: (a, b) => a.place - b.place,
    };
    explorer("items", {
      run: runs.map((run) => [run.id, run.label, run.recipe, run.id === start]),
      task: [["", "All tasks"], ...tasks],
      sort: [["worse", "most bits lost first"], ["better", "most bits won first"], ["order", "as scored"]],
    }, (state) => {
      const number = runs.findIndex((run) => run.id === state.run);
      const run = runs[number];
      const wanted = state.q.toLowerCase();
      const tally = { lost: 0, gained: 0, kept: 0, never: 0, unknown: 0, all: 0 };
      const rows = [];
      items.forEach(([task, name, item, question, answer, before, bits], i) => {
        if (state.task && task !== state.task) return;
        if (wanted && !has(`${question}\n${answer}`, wanted)) return;
        const what = kind(before, run.right[i]);
        tally[what]++;
        tally.all++;
        if (state.change !== "all" && what !== state.change) return;
        const moved = bits === null || run.bits[i] === null ? -Infinity : run.bits[i] - bits;
        rows.push({
          item: [name, item, question, answer, before, bits], right: run.right[i], bits: run.bits[i], place: i, moved,
          said: [said && said[i], run.said && run.said[i]],
        });
      });
      rows.sort(by[state.sort]);
      for (const [value] of CHANGES) counts[value].textContent = tally[value];
      const whole = run.n > items.length ? ` Over all its ${run.n.toLocaleString("en")} items: ${run.lost} right → wrong, ${run.gained} wrong → right.` : "";
      document.getElementById("items-count").textContent = `${rows.length} of ${tally.all} items.${whole}`;
      show("items", rows, row, STEP, wrap);
    });
  }

  function tokens({ passages, runs }) {
    const flat = runs.flatMap((run) => run.kl.flat()).filter((v) => v !== null).sort((a, b) => a - b);
    const limits = { kl: flat[Math.floor(0.95 * (flat.length - 1))] || 1 };
    const moves = runs.flatMap((run) => run.nll.flatMap((own, p) => own.map((v, i) => Math.abs(v - passages[p].nll[i]))));
    moves.sort((a, b) => a - b);
    limits.change = moves[Math.floor(0.95 * (moves.length - 1))] || 1;
    const visible = (token) => token.replaceAll("\n", "⏎\n").replaceAll("\t", "→\t");
    const values = (run, p, value) =>
      value === "kl" ? run.kl[p] : run.nll[p].map((v, i) => passages[p].nll[i] - v);
    const mean = (list) => list.reduce((a, b) => a + b, 0) / Math.max(1, list.length);
    const longest = passages.reduce((best, one, p) => (one.tokens.length > passages[best].tokens.length ? p : best), 0);
    const table = (run, p) => {
      const node = make("details");
      node.appendChild(make("summary", "", "Tokens that moved most"));
      node.addEventListener("toggle", () => {
        if (!node.open || node.childElementCount > 1) return;
        const holder = node.appendChild(make("div", "scroll"));
        const body = holder.appendChild(make("table"));
        const heads = body.createTHead().insertRow();
        for (const text of ["token", "position", "KL", "log p, base", "log p, tuned"]) {
          heads.appendChild(make("th", "", text)).scope = "col";
        }
        const rows = body.createTBody();
        const order = passages[p].tokens.map((_, i) => i).sort((a, b) => run.kl[p][b] - run.kl[p][a]);
        for (const i of order.slice(0, 10)) {
          const line = rows.insertRow();
          line.appendChild(make("th", "", `“${visible(passages[p].tokens[i])}”`)).scope = "row";
          for (const text of [i, run.kl[p][i], -passages[p].nll[i], -run.nll[p][i]]) line.appendChild(make("td", "number", String(text)));
        }
      });
      return node;
    };
    const block = ({ run, p, value, level }) => {
      const node = make("article", "passage");
      node.appendChild(make("h3", "", run.label));
      node.appendChild(make("p", "head", `Passage ${p + 1}, ${passages[p].tokens.length} tokens · mean ${value === "kl" ? "KL" : "change"} ${level.toFixed(3)} nats`));
      const text = node.appendChild(make("p", "run"));
      values(run, p, value).forEach((v, i) => {
        const token = text.appendChild(make("span", v < 0 || value === "kl" ? "less" : "more-likely", visible(passages[p].tokens[i])));
        token.style.setProperty("--v", Math.min(1, Math.abs(v) / limits[value]).toFixed(3));
        token.title = `KL ${run.kl[p][i]} nats; log p ${-passages[p].nll[i]} → ${-run.nll[p][i]}`;
      });
      node.appendChild(table(run, p));
      return node;
    };
    const scale = document.querySelector("#tokens .scale");
    explorer("tokens", {
      run: [["", "All runs"], ...runs.map((run) => [run.id, run.label])],
      passage: [["", "All passages"], ...passages.map((one, p) => [String(p + 1), `${p + 1} · ${one.tokens.slice(0, 12).join("").trim().slice(0, 40)}… (${one.tokens.length})`])],
      value: [["kl", "KL(base ‖ tuned)"], ["change", "change in log-probability"]],
      sort: [["order", "by passage"], ["most", "largest mean first"]],
    }, (state) => {
      const wanted = state.q.toLowerCase();
      const rows = [];
      passages.forEach((one, p) => {
        if (state.passage && state.passage !== String(p + 1)) return;
        if (wanted && !has(one.tokens.join(""), wanted)) return;
        for (const run of runs) {
          if (state.run && run.id !== state.run) continue;
          rows.push({ run, p, value: state.value, level: mean(values(run, p, state.value)) });
        }
      });
      if (state.sort === "most") rows.sort((a, b) => Math.abs(b.level) - Math.abs(a.level));
      document.getElementById("tokens-count").textContent = `${rows.length} ${rows.length === 1 ? "block" : "blocks"}: a passage under a run each.`;
      const kl = state.value === "kl";
      scale.replaceChildren(make("span", "", kl ? "0" : `−${limits.change.toFixed(1)}`), make("span", kl ? "ramp" : "ramp both"), make("span", "", kl ? `${limits.kl.toFixed(1)} nats and more` : `+${limits.change.toFixed(1)} nats`));
      show("tokens", rows, block, 6);
    }, { passage: String(longest + 1) });
  }

  function samples() {
    const sets = [...document.querySelectorAll("#samples .pool")];
    if (!sets.length) return;
    explorer("samples", { set: [["", "All sets"], ...sets.map((one) => [one.dataset.set, one.dataset.title])] }, (state) => {
      const wanted = state.q.toLowerCase();
      let shown = 0;
      for (const one of sets) {
        one.hidden = Boolean(state.set) && one.dataset.set !== state.set;
        for (const sample of one.querySelectorAll("li")) {
          sample.hidden = Boolean(wanted) && !has(sample.querySelector("pre").textContent, wanted);
          shown += !one.hidden && !sample.hidden;
        }
      }
      document.getElementById("samples-count").textContent = `${shown} samples.`;
    });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const key = (row, at) => {
      const cell = row.cells[at];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const button = make("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [key(a, at), key(b, at)];
          if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // empty cells last
          const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
          return down ? -order : order;
        });
        body.append(...rows);
      });
    });
  }

  // Where the page is shown in a frame (JupyterLab), links to its own parts would load it anew.
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      if (document.baseURI.split("#")[0] === location.href.split("#")[0]) return;
      event.preventDefault();
      document.querySelector(link.getAttribute("href")).scrollIntoView();
    });
  }

  if (DATA.items) items(DATA.items);
  if (DATA.tokens) tokens(DATA.tokens);
  samples();
  document.querySelectorAll("table.sortable").forEach(sortable);
})();
