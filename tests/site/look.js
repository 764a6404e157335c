() => {
  const page = [document.documentElement, document.querySelector(".content")].filter(Boolean);
  const wide = page.filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => `${box.tagName} ${box.scrollWidth}`);

  const covers = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const box = (element) => element.getBoundingClientRect();
  const covered = [...document.querySelectorAll("div.math > .eqno")]
    .filter((number) => covers(box(number), box(number.parentElement.querySelector(".katex-display"))))
    .map((number) => number.textContent);

  // What the theme says, to the eye and to a screen reader; what the book says is held by its catalogs.
  const words = [];
  const note = (text) => text?.trim() && words.push(text.trim());
  const written =
    "script, style, noscript, pre, code, .katex, [lang]:not(html), svg.plot, .sidebar-tree a, .toc-tree a, " +
    ".search li > a, .search .context, .search .highlighted";
  const theme = "symbol, .admonition-title, .headerlink, .copybtn, .caption-number, .verifies, .verified-by, #search-results";
  const cited = (element) => element.matches("a.reference, span.pre") && !element.closest(".verified-by");  // names, works
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(written)) continue;
    for (const name of ["aria-label", "title", "alt", "placeholder"]) {
      if (name !== "title" || !cited(element)) note(element.getAttribute(name));
    }
    if (element.matches(".related-pages .title")) note(element.textContent);
    if (element.closest(".related-pages .title")) continue;
    const about = element.closest(".search li > span");  // "(in llm_study.nn)": the words of the theme, without the name
    if (about === element) note(about.textContent.replace(/\w*[._][\w.]*/g, ""));
    if (about) continue;
    if (element.closest("article") && !element.closest(theme)) continue;
    for (const node of element.childNodes) if (node.nodeType === Node.TEXT_NODE) note(node.data);
  }

  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    wide, covered, words,
    lang: document.documentElement.lang,
    headings: all("h1, h2, h3, h4, h5, h6").map((heading) => heading.textContent.replace(/[¶#]$/, "").trim()),
    switches: all(".language-switch a").map((link) => [link.lang, link.hreflang, link.href]),
    navigations: all("nav.language-switch").length,
  };
}
