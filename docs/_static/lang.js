// The language switch: land on the same section with the same query, and remember the choice for the root page.
// Without scripts the links lead to the top of the same page.
(() => {
  const visible = (element) => {
    const box = element?.getBoundingClientRect();
    return box && box.bottom > 0 && box.top < innerHeight;
  };

  // The place named in the address while it is in sight, else the section that the table of contents marks as current.
  const place = () => {
    const named = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (named && visible(named)) return location.hash;
    const current = scrollY > 0 && document.querySelector(".toc-tree li.scroll-current:not(:has(.scroll-current)) > a");
    return current ? current.hash : location.hash;
  };

  const follow = (event) => {
    const link = event.target.closest?.("a[data-language]");
    if (!link) return;
    try {
      localStorage.setItem("language", link.dataset.language);
    } catch { /* a browser may refuse storage, on file:// above all */ }
    link.href = link.getAttribute("href").split(/[?#]/)[0] + location.search + place();
  };

  for (const way of ["click", "auxclick", "contextmenu"]) document.addEventListener(way, follow, true);
})();
