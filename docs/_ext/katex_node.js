// Reads {macros, formulas: [[tex, display], …]} from standard input; writes [{html, problems: [[code, message], …]}, …].
const katex = require(process.argv[2]);
const { macros, formulas } = JSON.parse(require("fs").readFileSync(0, "utf8"));

function render([tex, displayMode]) {
  const problems = [];
  const strict = (code, message) => {
    problems.push([code, message.toWellFormed()]); // it may hold half of an emoji
    return "ignore"; // reported by us, with file and line
  };
  try {
    return { html: katex.renderToString(tex, { displayMode, macros: { ...macros }, strict, trust: false }), problems };
  } catch (error) {
    // KaTeX marks the place with combining underlines, which few terminals show
    const message = error.message.replace("KaTeX parse error: ", "").replaceAll("\u0332", "");
    return { html: "", problems: [["error", message]] };
  }
}

process.stdout.write(JSON.stringify(formulas.map(render)));
