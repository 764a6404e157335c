// The reader's half of search_grams.py: Sphinx puts it into language_data.js, which the search page loads after searchtools.js.

const HAN = "[\\u3005\\u3007\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{3ffff}]";
const LETTER = `(?:(?!${HAN})[\\p{L}\\p{N}_])`;
const RUNS = new RegExp(`${HAN}+|${LETTER}+(?:[.-]${LETTER}+)*`, "gu");
const STARTS_WITH_HAN = new RegExp(`^${HAN}`, "u");

// Text and queries are split alike: words whole, a run of Chinese into all its pieces of three characters.
function splitQuery(query) {
  return (query.match(RUNS) ?? []).flatMap((run) => {
    const characters = Array.from(run);
    if (characters.length <= 3 || !STARTS_WITH_HAN.test(run)) return [run];
    return characters.slice(2).map((_, i) => characters.slice(i, i + 3).join(""));
  });
}

if (typeof Search !== "undefined") {
  // Every term must be on the page, be it as part of a longer one: what a reader of plain text would call found.
  // (Sphinx looks into longer words only if the term itself is nowhere, and lets terms of two characters be missing.)
  Search.performTermsSearch = (wanted) => {
    const { terms, titleterms, docnames, titles, filenames } = Search._index;
    const lists = [[terms, Scorer.term, Scorer.partialTerm], [titleterms, Scorer.title, Scorer.partialTitle]];
    const scoresOf = (word) => {
      const scores = new Map();
      const add = (pages, score) => [pages].flat().forEach((page) => scores.set(page, Math.max(score, scores.get(page) ?? 0)));
      for (const [index, whole, part] of lists) {
        for (const term of Object.keys(index)) if (term.includes(word)) add(index[term], term === word ? whole : part);
      }
      return scores;
    };
    const [first, ...others] = [...wanted].map(scoresOf);
    return [...(first?.keys() ?? [])]
      .filter((page) => others.every((scores) => scores.has(page)))
      .map((page) => {
        const score = Math.max(...[first, ...others].map((scores) => scores.get(page)));
        return [docnames[page], titles[page], "", null, score, filenames[page], SearchResultKind.text];
      });
  };

  // Marked in excerpts and on the page that a reader goes to: what was typed, not its grams.
  let runs = [];
  const parseQuery = Search._parseQuery;
  Search._parseQuery = (query) => {
    const [text, wanted, excluded, , objects] = parseQuery(query);
    runs = query.toLowerCase().match(RUNS) ?? [];
    if (SPHINX_HIGHLIGHT_ENABLED) localStorage.setItem("sphinx_highlight_terms", runs.join(" "));
    return [text, wanted, excluded, new Set(runs), objects];
  };
  const makeSearchSummary = Search.makeSearchSummary; // it begins near the last keyword that is on the page
  Search.makeSearchSummary = (html, keywords, anchor) => makeSearchSummary(html, [...keywords, ...runs], anchor);

  // Excerpts show formulas once, as MathML has them, not also as LaTeX and as KaTeX's boxes.
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".headerlink, script, style, .katex-html, annotation").forEach((element) => element.remove());
    const part = anchor ? page.getElementById(anchor.slice(1)) : null;
    return (part ?? page.querySelector('[role="main"]'))?.textContent ?? "";
  };

  // A browser may not read other files of a folder that it was given as file://, so there are no excerpts to ask for.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
