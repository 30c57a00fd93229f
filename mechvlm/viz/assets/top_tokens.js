// circuitsvis's table of the best tokens, in our colours: one position over layers, or one
// layer over positions. Its own choosers are hidden and set from here: they know neither
// layers nor tokens by name, and begin with five columns and a half for the worst tokens.
MechVLM.kinds.top_tokens = (plot, spec, output, figure) => {
  const { el, say, number, themed, widget } = MechVLM;
  const { best, columns, rows } = spec;
  const values = MechVLM.decode(spec.values), colour = MechVLM.palette(spec.scale);
  const stage = el("div", "mv-circuits mv-table");
  let row = spec.first, on = [-1, -1], home = null;
  const value = (k, column) => values[(row * best + k) * columns.length + column];
  const id = (k, column) => spec.ids[(row * best + k) * columns.length + column];

  if (rows.length > 1) plot.append(widget.chooser(rows, row, (to) => { row = to; show(); }));
  figure.querySelector("figcaption").after(MechVLM.bar(spec.scale, spec.units));
  plot.append(stage);
  plot.setAttribute("role", "group");

  const cells = () => Array.from(home.querySelectorAll("tbody tr"), (line) => Array.from(line.querySelectorAll("td:not([rowspan])")));

  // React hears a change of a select only as an event.
  function set(name, to) {
    const select = home.querySelector(name);
    select.value = to;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  }

  function tend() {
    if (!home || !home.querySelector("table")) return;
    const heads = Array.from(home.querySelectorAll("thead tr:last-child th")).slice(1);
    if (home.querySelector("#filter-select").value !== "topk") return set("#filter-select", "topk");
    if (heads.length !== columns.length) return set("#visible-cols-selector", columns.length);
    heads.forEach((head, i) => { if (head.textContent !== columns[i]) head.textContent = columns[i]; });
    cells().forEach((line, k) => line.forEach((cell, column) => {
      widget.paint(cell, colour(value(k, column)));
      cell.classList.toggle("mv-on", k === on[0] && column === on[1]);
    }));
  }

  function show() {
    const table = (get) => Array.from({ length: best }, (_, k) => columns.map((_, column) => get(k, column)));
    const shown = [table(value)], ids = [table(id)];
    const words = spec.words.map(widget.harmless);
    // Twice the same sample: of a single one circuitsvis draws no more than one column.
    home = widget.place(stage, "TopkTokens", {
      tokens: [words, words], topkVals: [shown, shown], topkIdxs: [ids, ids],
      bottomkVals: [[[]], [[]]], bottomkIdxs: [[[]], [[]]], firstDimensionName: "", thirdDimensionName: spec.across,
    }, tend);
    choose(...on);
  }

  function choose(k, column) {
    on = [k, column];
    tend();
    const where = rows.length ? [rows[row]] : [];
    if (k < 0) return say(output, [...where, "point at a word, or press the arrow keys, to read it"]);
    say(output, [{ token: spec.words[id(k, column)] }, { value: number(value(k, column)) }, `place ${k + 1}`, spec.places[column], ...where]);
  }

  function point(event) {
    const cell = event.target.closest("td");
    cells().forEach((line, k) => { if (line.includes(cell)) choose(k, line.indexOf(cell)); });
  }

  stage.addEventListener("pointerover", point);
  stage.addEventListener("pointerdown", point);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || event.target !== plot) return;
    event.preventDefault();
    const within = (i, n) => Math.min(n - 1, Math.max(0, i));
    choose(within(Math.max(0, on[0]) + (on[0] < 0 ? 0 : move[0]), best), within(on[1] < 0 ? 0 : on[1] + move[1], columns.length));
    cells()[on[0]][on[1]].scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  themed(tend);
  return () => { if (!home) show(); };
};
