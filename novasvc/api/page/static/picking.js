// Selecting services in the list: says how many are selected. Without JavaScript the forms work as well.

const count = new Intl.NumberFormat("en");

function show() {
  const form = document.querySelector(".pickform");
  if (!form) return;
  const all = form.querySelector("#all");
  const boxes = [...form.querySelectorAll("input[name=id]")];
  const picked = boxes.filter((box) => box.checked).length;
  for (const box of boxes) box.disabled = all.checked;
  form.querySelector(".picked").textContent = all.checked ? all.ariaLabel.replace("Select all", "All") : `${count.format(picked)} selected`;
}

export function watchPicking() {
  document.getElementById("grid").addEventListener("change", show);
  document.addEventListener("picked", show); // the list was loaded again
  show();
}
