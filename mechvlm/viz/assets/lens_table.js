// The words of one cell at every layer, the last layer on top. Rows are made once.
MechVLM.kinds.lens_table = (model, pick) => {
  const { el } = MechVLM;
  const n = model.layers.labels.length, k = model.k;
  const box = el("div", "mv-lens-side"), title = el("div", "mv-lens-title");
  const table = el("table", "mv-lens-table"), head = el("tr"), body = el("tbody");
  const rankHead = el("th", "", "rank");
  const wordHead = el("th", "", k > 1 ? "best words, best first" : "best word");
  wordHead.colSpan = k;
  head.append(el("th", "", "layer"), rankHead, wordHead);
  const top = el("thead");
  top.append(head);
  table.append(top, body);
  box.append(title, table);

  const rows = model.layers.labels.map((label, layer) => {
    const row = el("tr"), name = el("th", "", label), rank = el("td", "mv-lens-rank");
    name.scope = "row";
    row.append(name, rank);
    const words = Array.from({ length: k }, (_, i) => {
      const cell = el("td", "mv-lens-word"), bar = el("i"), text = el("span");
      cell.append(bar, text);
      cell.addEventListener("click", (event) => {
        event.stopPropagation();
        pick.word(layer, i);
      });
      cell.addEventListener("pointerenter", () => {
        cell.title = text.textContent;
        pick.read(layer, i);
      });
      row.append(cell);
      return { cell, bar, text };
    });
    row.addEventListener("click", () => pick.layer(layer));
    return { row, rank, words };
  });
  body.append(...rows.map((each) => each.row).reverse());

  // Writes only what differs from what stands there: pointing moves fast.
  function fill(place, chosen) {
    const seeking = model.seeking();
    title.textContent = model.where(place);
    rankHead.hidden = !seeking;
    rows.forEach(({ row, rank, words }, layer) => {
      row.className = layer === chosen ? "mv-lens-here" : "";
      rank.hidden = !seeking;
      if (seeking) rank.textContent = model.rankWords(layer, place);
      words.forEach((each, i) => {
        const at = model.at(layer, place, i), word = model.index[at], chance = model.probability[at];
        const hit = model.isSought(word);
        if (each.word !== word) each.text.textContent = model.words[word];
        if (each.chance !== chance) each.bar.style.width = 100 * chance + "%";
        if (each.hit !== hit) each.cell.classList.toggle("mv-lens-hit", hit);
        Object.assign(each, { word, chance, hit });
      });
    });
  }

  return { node: box, fill };
};
