// Tables that sort and commands that copy. Without this script the page shows the same.
const UNITS = {h: 3600, min: 60, k: 1e3, M: 1e6, B: 1e9};

function valueOf(cell) {
  const text = [...(cell.querySelector(":scope > span:last-child") ?? cell).childNodes]
    .filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data).join("").trim();
  if (text === "" || text === "–") return null;
  const plain = text.replaceAll("−", "-").replaceAll(",", "");
  if (!/^[-+]?\d/.test(plain)) return text;
  const parts = [...plain.matchAll(/([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*([a-zA-Z]*)/g)];
  return parts.reduce((sum, [, number, unit]) => sum + Number(number) * (UNITS[unit] ?? 1), 0);
}

function compared(one, other, way) {
  if (one === null || other === null) return (one === null) - (other === null);  // what is missing comes last
  if (typeof one === "number" && typeof other === "number") return way * (one - other);
  return way * String(one).localeCompare(String(other), "en", {numeric: true});
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    const name = document.createElement("span");
    name.append(heading.firstChild.data.trim());
    heading.firstChild.remove();
    button.append(name, ...heading.childNodes);
    button.type = "button";
    heading.append(button);
    button.addEventListener("click", () => {
      const way = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
      rows.sort(([one], [other]) => compared(one, other, way));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

for (const code of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(code.querySelector("code"));
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  code.prepend(button);
}
