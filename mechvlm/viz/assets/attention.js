// circuitsvis's view of attention patterns, with a choice of layers. Its tokens are set as
// HTML by circuitsvis, so they arrive here already escaped.
MechVLM.kinds.attention = (plot, spec, output) => {
  const { el, say } = MechVLM;
  const [nLayers, nHeads, nTargets, nSources] = spec.shape;
  const levels = MechVLM.bytes(spec.data);
  const bar = el("label", "mv-choose"), select = el("select"), stage = el("div", "mv-circuits");
  spec.layers.forEach((name, i) => {
    const option = el("option", "", "layer " + name);
    option.value = i;
    select.append(option);
  });
  select.value = spec.first;
  bar.append(el("span", "", "show"), select);
  plot.append(...(nLayers > 1 ? [bar, stage] : [stage]));
  plot.setAttribute("role", "group");
  plot.removeAttribute("tabindex");

  function patterns(layer) {
    let at = layer * nHeads * nTargets * nSources;
    return Array.from({ length: nHeads }, () => Array.from({ length: nTargets }, () => {
      const row = Array.from(levels.subarray(at, at + nSources), (v) => v / 255);
      at += nSources;
      return row;
    }));
  }

  function show() {
    const home = el("div");
    home.id = "mv-circuits-" + (MechVLM.circuits = (MechVLM.circuits || 0) + 1);
    stage.replaceChildren(home);
    CircuitsVis.render(home.id, CircuitsVis.AttentionPatterns, {
      tokens: spec.tokens, attention: patterns(Number(select.value)), headLabels: spec.heads,
    });
    say(output, ["layer " + spec.layers[Number(select.value)], "hover over a head or a token, click to hold it"]);
  }

  select.addEventListener("change", show);
  let drawn = false;
  return () => {
    if (!drawn) show();
    drawn = true;
  };
};
