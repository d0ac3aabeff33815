// Shows one reconstruction at a time; without scripts all of them stand one below the other.
for (const slider of document.querySelectorAll(".slider")) {
  const frames = slider.nextElementSibling, input = slider.querySelector("input");
  const name = slider.querySelector("output");
  const show = () => {
    [...frames.children].forEach((figure, at) => figure.classList.toggle("on", at == input.value));
    name.textContent = frames.children[input.value].querySelector("figcaption").textContent;
  };
  slider.hidden = false;
  frames.classList.add("one");
  input.addEventListener("input", show);
  show();
}
