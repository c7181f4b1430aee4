// Filters the rows. Without it the page shows all of them.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const rows = [...document.querySelectorAll("#rows article")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const shown = form.querySelector("output");
  const show = () => {
    const { search, why, of } = form.elements;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      const fits =
        words.every((word) => texts[i].includes(word)) &&
        (!why.value || row.dataset.why.split("|").includes(why.value)) &&
        (!of.value || row.dataset.of === of.value);
      row.hidden = !fits;
      count += fits;
    });
    shown.textContent = `${count} of ${rows.length} rows`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    show();
  });
  form.hidden = false;
  show();
})();
