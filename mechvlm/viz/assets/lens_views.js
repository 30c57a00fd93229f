// Where the lens was read: on the picture, as a plane of layers by positions, as tokens.
(() => {
  const { el } = MechVLM;
  const ink = ([r, g, b]) => (0.3 * r + 0.59 * g + 0.11 * b > 132 ? "#20242b" : "#ffffff");
  const font = (px) => `${px}px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif`;

  function fitted(pen, text, room) {
    if (pen.measureText(text).width <= room) return text;
    const letters = Array.from(text);
    while (letters.length > 1 && pen.measureText(letters.join("") + "…").width > room) letters.pop();
    return letters.length > 1 ? letters.join("") + "…" : "";
  }

  function framed(box, cls, label) {
    const canvas = el("canvas", cls), marker = el("div", "mv-cell");
    box.tabIndex = 0;
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", label);
    box.replaceChildren(canvas, marker);
    return { canvas, marker };
  }

  function size(canvas, wide, high) {
    const sharp = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(wide * sharp), height: Math.round(high * sharp) });
    Object.assign(canvas.style, { width: wide + "px", height: high + "px" });
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    return pen;
  }

  // Paints shares of 0 to 1 into a small canvas, which is then drawn large.
  function raster(wide, high, share, colour, clear) {
    const canvas = Object.assign(el("canvas"), { width: wide, height: high });
    const pixels = new ImageData(wide, high);
    for (let i = 0; i < wide * high; i++) {
      const s = share(i);
      pixels.data.set([...colour(s), clear ? Math.round(230 * s ** 0.7) : 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  function place(marker, x, y, wide, high, pinned) {
    marker.hidden = false;
    marker.classList.toggle("mv-pinned", pinned);
    Object.assign(marker.style, { left: x + "px", top: y + "px", width: wide + "px", height: high + "px" });
  }

  MechVLM.kinds.lens_picture = (model) => {
    const { uri, grid, size: [width, height], outline } = model.picture;
    const [, rows, cols, x0, y0, x1, y1] = grid, cells = model.cells;
    const box = el("div", "mv-lens-picture"), photo = new Image();
    const { canvas, marker } = framed(box, "mv-big", "the picture; arrow keys walk its cells");
    let wide = 1, high = 1, layer = 0;

    function paint(now) {
      layer = now;
      const pen = size(canvas, wide, high), sx = wide / width, sy = high / height;
      pen.filter = "saturate(0)";
      pen.drawImage(photo, 0, 0, wide, high);
      pen.filter = "none";
      pen.fillStyle = MechVLM.colour("paper");
      pen.globalAlpha = MechVLM.dark ? 0.55 : 0.35;
      pen.fillRect(0, 0, wide, high);
      pen.globalAlpha = 1;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(raster(cols, rows, (i) => model.share(layer, cells[i]), model.colour, true),
        x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
      write(pen, sx, sy);
      for (const [colour, thick] of [["#ffffff", 3], ["#20242b", 1.4]]) {
        Object.assign(pen, { strokeStyle: colour, lineWidth: thick, lineCap: "square" });
        pen.beginPath();
        for (const [a, b, c, d] of outline) {
          pen.moveTo(a * sx, b * sy);
          pen.lineTo(c * sx, d * sy);
        }
        pen.stroke();
      }
    }

    function write(pen, sx, sy) {
      const w = ((x1 - x0) * sx) / cols, h = ((y1 - y0) * sy) / rows;
      if (w < 34 || h < 13) return;
      Object.assign(pen, { font: font(w < 42 ? 9.5 : 11), textAlign: "center", textBaseline: "middle", lineJoin: "round" });
      const paper = MechVLM.dark ? 70 : 200;
      cells.forEach((cell, i) => {
        const alpha = 0.9 * model.share(layer, cell) ** 0.7;
        const ground = model.colour(model.share(layer, cell)).map((c) => Math.round(alpha * c + (1 - alpha) * paper));
        const text = fitted(pen, model.word(layer, cell, 0), w - 3);
        const x = x0 * sx + ((i % cols) + 0.5) * w, y = y0 * sy + (Math.floor(i / cols) + 0.5) * h;
        Object.assign(pen, { strokeStyle: `rgba(${ground},.8)`, lineWidth: 2.5, fillStyle: ink(ground) });
        pen.strokeText(text, x, y);
        pen.fillText(text, x, y);
      });
    }

    photo.addEventListener("load", () => wide > 1 && paint(layer));
    photo.src = uri;
    return {
      node: box,
      resize(room) {
        wide = Math.min(room, 460, (480 * width) / height);
        high = (wide * height) / width;
        box.style.width = wide + "px";
      },
      paint,
      mark(now, at, pinned) {
        const i = cells.indexOf(at), w = ((x1 - x0) * wide) / width / cols, h = ((y1 - y0) * high) / height / rows;
        if (i < 0) marker.hidden = true;
        else place(marker, (x0 * wide) / width + (i % cols) * w, (y0 * high) / height + Math.floor(i / cols) * h, w, h, pinned);
      },
      at(event) {
        const frame = canvas.getBoundingClientRect();
        const x = ((event.clientX - frame.left) / frame.width) * width, y = ((event.clientY - frame.top) / frame.height) * height;
        const col = Math.floor(((x - x0) / (x1 - x0)) * cols), row = Math.floor(((y - y0) / (y1 - y0)) * rows);
        return col < 0 || row < 0 || col >= cols || row >= rows ? null : { place: cells[row * cols + col] };
      },
      step(now, at, across, up) {
        const i = Math.max(0, cells.indexOf(at));
        const col = Math.min(cols - 1, Math.max(0, (i % cols) + across));
        const row = Math.min(rows - 1, Math.max(0, Math.floor(i / cols) - up));
        return { place: cells[row * cols + col] };
      },
    };
  };

  MechVLM.kinds.lens_plane = (model) => {
    const nLayers = model.layers.labels.length, n = model.positions.labels.length, LEFT = 40;
    const names = model.positions.tokens.length ? model.positions.tokens : model.positions.labels;
    const scroll = el("div", "mv-lens-plane"), box = el("div");
    const { canvas, marker } = framed(box, "", "layers by positions; arrow keys walk them");
    scroll.append(box);
    let edges = [0], written = false, row = 1, below = 78;

    // Columns of written tokens have room for a line of text; long image blocks share the rest.
    function columns(room) {
      const silent = model.quiet.filter(Boolean).length, rest = n - silent, share = room / n;
      written = n <= 48;
      const each = written ? Math.max(50, Math.min(110, share)) : Math.max(2, Math.min(30, ((silent ? 0.66 : 1) * room) / (rest || 1)));
      const thin = written ? each : Math.max(1, Math.min(30, (room - each * rest) / (silent || 1)));
      edges = [0];
      model.quiet.forEach((quiet) => edges.push(edges[edges.length - 1] + (quiet ? thin : each)));
    }

    function column(x) {
      let low = 0, high = n;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (edges[middle] <= x) low = middle;
        else high = middle;
      }
      return x >= 0 && x < edges[n] ? low : -1;
    }

    function paint() {
      const high = nLayers * row, pen = size(canvas, LEFT + edges[n] + 1, high + below);
      const tinted = raster(n, nLayers, (i) => model.share(nLayers - 1 - Math.floor(i / n), i % n), model.colour, false);
      pen.imageSmoothingEnabled = false;
      for (let from = 0, to = 1; to <= n; to++) { // one drawImage for each run of columns of one width
        if (to < n && model.quiet[to] === model.quiet[from]) continue;
        pen.drawImage(tinted, from, 0, to - from, nLayers, LEFT + edges[from], 0, edges[to] - edges[from], high);
        from = to;
      }
      Object.assign(pen, { font: font(11), textBaseline: "middle", fillStyle: MechVLM.colour("faint"), textAlign: "right" });
      const step = Math.ceil(14 / row);
      for (let l = 0; l < nLayers; l += step) pen.fillText(model.layers.labels[l], LEFT - 8, (nLayers - l - 0.5) * row);
      if (written) words(pen);
      tokens(pen, high);
    }

    function words(pen) {
      pen.textAlign = "center";
      for (let l = 0; l < nLayers; l++) for (let i = 0; i < n; i++) {
        pen.fillStyle = ink(model.colour(model.share(l, i)));
        pen.font = (model.isSought(model.index[model.at(l, i, 0)]) ? "bold " : "") + font(11);
        pen.fillText(fitted(pen, model.word(l, i, 0), edges[i + 1] - edges[i] - 6), LEFT + (edges[i] + edges[i + 1]) / 2, (nLayers - l - 0.5) * row);
      }
    }

    function tokens(pen, high) {
      pen.fillStyle = MechVLM.colour("ink");
      pen.font = font(12);
      pen.textAlign = written ? "center" : "right";
      let free = -1e9;
      names.forEach((name, i) => {
        const x = LEFT + (edges[i] + edges[i + 1]) / 2;
        if (model.quiet[i] || x < free) return;
        free = x + 13;
        pen.save();
        pen.translate(x, high + (written ? 16 : 8));
        if (!written) pen.rotate(-Math.PI / 2);
        pen.fillText(fitted(pen, name, written ? edges[i + 1] - edges[i] - 4 : below - 14), 0, 0);
        pen.restore();
      });
      pen.textAlign = "center";
      pen.fillStyle = MechVLM.colour("faint");
      for (const [group, from, to] of model.positions.groups)
        if (model.quiet[from]) pen.fillText(group + " ×" + (to - from), LEFT + (edges[from] + edges[to]) / 2, high + 16);
    }

    return {
      node: scroll,
      resize(room) {
        columns(room - LEFT - 2);
        row = written ? 20 : Math.max(8, Math.min(18, 320 / nLayers));
        below = written ? 28 : 78;
        box.style.width = LEFT + edges[n] + 1 + "px";
        scroll.style.maxWidth = room + "px";
      },
      paint,
      mark(layer, at, pinned) {
        const x = LEFT + edges[at], wide = edges[at + 1] - edges[at];
        place(marker, x, (nLayers - 1 - layer) * row, Math.max(2, wide), row, pinned);
        if (x < scroll.scrollLeft || x + wide > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = x - scroll.clientWidth / 2;
      },
      at(event) {
        const frame = canvas.getBoundingClientRect();
        const i = column(event.clientX - frame.left - LEFT), l = nLayers - 1 - Math.floor((event.clientY - frame.top) / row);
        return i < 0 || l < 0 || l >= nLayers ? null : { place: i, layer: l };
      },
      step: (layer, at, across, up) => ({
        place: Math.min(n - 1, Math.max(0, at + across)), layer: Math.min(nLayers - 1, Math.max(0, layer + up)),
      }),
    };
  };

  // Positions beside the picture, as chips.
  MechVLM.kinds.lens_tokens = (model, beside) => {
    const box = el("div", "mv-lens-tokens"), names = model.positions.tokens.length ? model.positions.tokens : model.positions.labels;
    box.tabIndex = 0;
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", "tokens beside the picture; arrow keys walk them");
    const chips = beside.map((at) => {
      const chip = el("span", "mv-lens-chip", MechVLM.shortened(names[at], 24));
      chip.dataset.place = at;
      return chip;
    });
    box.append(...chips);
    return {
      node: box,
      resize() {},
      paint(layer) {
        chips.forEach((chip, i) => {
          const colour = model.colour(model.share(layer, beside[i]));
          Object.assign(chip.style, { background: `rgb(${colour})`, color: ink(colour) });
        });
      },
      mark(layer, at, pinned) {
        box.querySelector(".mv-lens-on")?.classList.remove("mv-lens-on", "mv-pinned");
        const i = beside.indexOf(at);
        if (i >= 0) chips[i].classList.add("mv-lens-on", ...(pinned ? ["mv-pinned"] : []));
      },
      at(event) {
        const chip = event.target.closest(".mv-lens-chip");
        return chip ? { place: Number(chip.dataset.place) } : null;
      },
      step(layer, at, across, up) {
        const i = beside.indexOf(at);
        return { place: beside[Math.min(beside.length - 1, Math.max(0, i + across - up))] };
      },
    };
  };
})();
