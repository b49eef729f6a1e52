// The keyboard's focus: it is on a control that is shown, also when the page changes around it.

// Let a button show a part of the page; returns show(yes). Escape in a shown part hides it. The focus goes back to the button.
export function disclosure(button, part) {
  const isShown = () => part.classList.contains("shown");
  const show = (yes) => {
    if (!yes && isShown() && part.contains(document.activeElement)) button.focus();
    part.classList.toggle("shown", yes);
    button.ariaExpanded = String(yes);
  };
  button.addEventListener("click", () => show(!isShown()));
  part.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isShown()) return;
    event.stopPropagation();
    show(false);
  });
  return show;
}

// Replace the items of a list, which have a data-id. A focused button keeps the focus; that of an item which has gone leaves
// the focus to the next item, or to `instead` where the list is empty.
export function replaceItems(list, items, instead) {
  const place = [...list.children].findIndex((item) => item.contains(document.activeElement));
  const { id } = list.children[place]?.dataset ?? {};
  const k = [...(list.children[place]?.children ?? [])].indexOf(document.activeElement);
  list.replaceChildren(...items);
  if (place < 0) return;
  const item = items.find(({ dataset }) => dataset.id === id) ?? items[place] ?? items.at(-1);
  (item?.children[k] ?? instead).focus();
}
