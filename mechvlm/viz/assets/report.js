"use strict";
// A link to a packed table gives the table itself where the browser can unpack it.
document.querySelectorAll("a.mv-csv").forEach((link) => {
  if (typeof DecompressionStream === "undefined") return;
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const raw = atob(link.href.slice(link.href.indexOf(",") + 1));
    const packed = new Blob([Uint8Array.from(raw, (c) => c.charCodeAt(0))]);
    const plain = packed.stream().pipeThrough(new DecompressionStream("gzip"));
    const text = await new Response(plain).blob();
    const made = document.createElement("a");
    made.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    made.download = link.download.replace(/\.gz$/, "");
    made.click();
    setTimeout(() => URL.revokeObjectURL(made.href), 60000);
  });
});
