"use strict";
// The page is complete without this script. It shows a mark's title below its chart on hover or tap, and searches and sorts
// the long table.
for (const chart of document.querySelectorAll(".chart")) {
  const readout = document.createElement("p");
  readout.className = "readout";
  chart.after(readout);
  const showTitle = (event) => {
    const title = event.target.querySelector?.(":scope > title");
    if (title) readout.textContent = title.textContent;
  };
  chart.addEventListener("pointerover", showTitle);
  chart.addEventListener("click", showTitle);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column].textContent;
    const number = parseFloat(text.replaceAll(",", ""));
    return heads[column].dataset.text !== undefined ? text : Number.isNaN(number) ? -Infinity : number;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const text = head.dataset.text !== undefined;
      const descending = head.ariaSort ? head.ariaSort === "ascending" : !text;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = descending ? "descending" : "ascending";
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (descending ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
  const search = document.createElement("input");
  search.type = "search";
  search.className = "search";
  search.placeholder = search.ariaLabel = "Search tags";
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase().replaceAll(" ", "_");
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
  table.parentElement.before(search);
}
