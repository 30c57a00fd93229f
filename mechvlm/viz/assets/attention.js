// circuitsvis's views of attention, with a choice of layers. Its pattern view sets tokens
// as HTML, so they arrive here already escaped; its view of heads writes on a canvas.
MechVLM.kinds.attention = (plot, spec, output) => {
  const { el, say, widget } = MechVLM;
  const [nLayers, nHeads, nTargets, nSources] = spec.shape;
  const levels = new Uint16Array(MechVLM.bytes(spec.data).buffer);
  const stage = el("div", "mv-circuits mv-inked mv-" + spec.view);
  let layer = spec.first, drawn = false;
  if (spec.note) plot.append(el("p", "mv-note", spec.note));
  if (nLayers > 1) plot.append(widget.chooser(spec.layers.map((name) => "layer " + name), layer, (to) => { layer = to; show(); }));
  plot.append(stage);
  plot.setAttribute("role", "group");
  plot.removeAttribute("tabindex");
  MechVLM.themed(() => stage.classList.toggle("mv-turned", MechVLM.dark));

  function patterns() {
    let at = layer * nHeads * nTargets * nSources;
    return Array.from({ length: nHeads }, () => Array.from({ length: nTargets }, () => {
      const row = Array.from(levels.subarray(at, at + nSources), (v) => Math.round((v / 65535) * 1e4) / 1e4);
      at += nSources;
      return row;
    }));
  }

  function legend() {
    const box = el("div", "mv-inked-bar"), ends = el("div", "mv-ends");
    ends.append(el("span", "", "0"), el("span", "", "attention weight"), el("span", "", "1"));
    box.append(el("div", "mv-strip"), ends);
    return box;
  }

  // circuitsvis writes white on grounds too pale for it; a class is no style of React's.
  function legible(home) {
    for (const word of home.querySelectorAll(".tokens button")) {
      const dark = widget.bright((word.style.backgroundColor.match(/\d+/g) || [255, 255, 255]).slice(0, 3).map(Number));
      word.classList.toggle("mv-dark-word", dark);
      word.classList.toggle("mv-light-word", !dark);
    }
  }

  function showPatterns() {
    const props = { tokens: spec.tokens, attention: patterns(), headLabels: spec.heads };
    const home = widget.place(stage, "AttentionPatterns", props, legible);
    new MutationObserver(() => legible(home)).observe(home, { subtree: true, attributeFilter: ["style"] });
    return ["stronger colour reads more, each head in its own hue", "hover over a head or a token, click to hold it"];
  }

  function showHeads() {
    // This view drops every blank of its labels.
    const tokens = spec.tokens.map((token) => token.replace(/\s+/g, "·"));
    widget.place(stage, "AttentionHeads", {
      tokens, attention: patterns(), attentionHeadNames: spec.heads,
      minValue: -1, maxValue: 1, positiveColor: "#1b2a60", maskUpperTri: false,
    }, () => {});
    stage.prepend(legend());
    return ["row reads column", "hover over a head, click to hold it; hover over a cell to read it"];
  }

  function show() {
    const hints = spec.view === "heads" ? showHeads() : showPatterns();
    say(output, ["layer " + spec.layers[layer], ...hints]);
  }

  return () => {
    if (!drawn) show();
    drawn = true;
  };
};
