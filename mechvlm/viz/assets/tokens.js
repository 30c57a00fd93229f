// circuitsvis's coloured tokens, in our colours, with a choice of rows where there are several.
MechVLM.kinds.tokens = (plot, spec, output, figure) => {
  const { el, say, number, themed, widget } = MechVLM;
  const n = spec.tokens.length, values = MechVLM.decode(spec.values);
  const colour = MechVLM.palette(spec.scale);
  const stage = el("div", "mv-circuits mv-words");
  let row = spec.first, on = -1, home = null;
  const rowOf = (i) => values.subarray(i * n, (i + 1) * n);

  if (spec.rows.length > 1) plot.append(widget.chooser(spec.rows, row, (to) => { row = to; show(); }));
  if (spec.note) plot.append(el("p", "mv-note", spec.note));
  figure.querySelector("figcaption").after(MechVLM.bar(spec.scale, spec.units));
  plot.append(stage);
  plot.setAttribute("role", "group");

  const words = () => (home ? Array.from(home.querySelectorAll(".colored-tokens > span")) : []);

  function tend() {
    const shown = rowOf(row);
    words().forEach((word, i) => {
      widget.paint(word.firstChild, colour(shown[i]));
      word.classList.toggle("mv-on", i === on);
    });
  }

  function show() {
    const shown = Array.from(rowOf(row), (v) => (Number.isFinite(v) ? Number(v.toPrecision(3)) : null));
    home = widget.place(stage, "ColoredTokens", {
      tokens: spec.tokens.map(widget.harmless), values: shown, minValue: spec.scale.low, maxValue: spec.scale.high,
    }, tend);
    choose(on);
  }

  function choose(i) {
    on = i;
    tend();
    const where = spec.rows.length > 1 ? [spec.rows[row]] : [];
    if (i < 0) return say(output, [...where, "point at a token, or press the arrow keys, to read it"]);
    say(output, [{ value: number(rowOf(row)[i]) }, ...where, { token: spec.tokens[i] }, spec.places[i]]);
  }

  const at = (event) => words().indexOf(event.target.closest(".colored-tokens > span"));
  stage.addEventListener("pointerover", (event) => { if (at(event) >= 0) choose(at(event)); });
  stage.addEventListener("pointerdown", (event) => { if (at(event) >= 0) choose(at(event)); });
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!move || event.target !== plot) return;
    event.preventDefault();
    choose(Math.min(n - 1, Math.max(0, on + move)));
  });
  themed(tend);
  return () => { if (!home) show(); };
};
