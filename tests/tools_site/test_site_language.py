"""The checks of what a finished site says, each on a site with one fault."""

from pathlib import Path

import pytest
from site_language import check

ROOT = Path(__file__).parents[2]
ENGLISH = """<html><head><title>T</title><script>"中文"</script></head><body>
<a lang="zh-CN" href="../zh/a.html">中文</a>
<article><section id="a-top"><h1><span class="section-number">1. </span>T</h1>
<p>All of it is English, <code>x</code>. <a href="b.html#中">b</a></p><pre>print("小猫")</pre>
<figure class="x" id="fig-a"><figcaption><span class="caption-number">Fig. 1.1 </span>It.</figcaption></figure>
<table class="y" id="tab-a"><caption><span class="caption-number">Table 1.2 </span></caption></table>
<div class="math" id="equation-a"><span class="eqno">(1.3)</span></div></section></article></body></html>"""
CHINESE = ENGLISH.replace("Fig. ", "图 ").replace("Table ", "表 ").replace("All of it is English", "全是中文")
API = """<html><body><article><section id="api-m"><h1><code>m.f</code></h1>
<dl><dt class="sig" id="m.f">def some words here</dt>
<dd><p>{}</p><pre>some words in code</pre><p><strong>q</strong> (<code>Tensor or None given</code>) – 查询。</p>
<p>见 Attention is all you need。</p><p>DPO, PPO</p></dd>
</dl></section></article><p>built with some tool here</p></body></html>"""
ENGLISH_API = (
    API.format("One sentence of it.").replace("查询。", "queries.").replace("见 Att", "Att").replace("need。", "need.")
)
ALLOWED = '[[allowed]]\ncatalog = "en/a"\ntext = "小猫"\nreason = "data"\n'


@pytest.fixture
def site(tmp_path):
    """Return a function that writes a sound site with changes to some pages, and returns what is wrong with it."""

    def run(**changes: tuple[str, str]) -> list[str]:
        pages = {
            "site/zh/a.html": CHINESE, "site/en/a.html": ENGLISH, "site/zh/api/m.html": API.format("一句译文。"),
            "site/en/api/m.html": ENGLISH_API,
            "docs/languages.toml": (ROOT / "docs/languages.toml").read_text("utf-8"), "locale/allowed.toml": ALLOWED,
        }  # fmt: skip
        for name, text in pages.items():
            old, new = changes.get(name.removeprefix("site/").partition(".")[0].replace("/", "_"), ("", ""))
            assert old in text
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text.replace(old, new) if old else text, "utf-8")
        return check(tmp_path / "site", tmp_path)

    return run


def test_a_sound_site_has_no_finding(site):
    assert site() == []


@pytest.mark.parametrize(
    ("new", "found"),
    [
        ("All of 它 is English", "'它' behind #a-top"),
        ("All of it is English。", "'。' behind #a-top"),
        ('<img alt="它" src="x.svg">All of it', "'它' behind #a-top"),
        ('<a title="它" href="b.html">All of it</a>', "'它' behind #a-top"),
        ("<code>小狗</code>", "'小狗' behind #a-top"),
    ],
)
def test_chinese_on_an_english_page(site, new, found):
    mend = "translate it, or list data in locale/allowed.toml"
    assert site(en_a=("All of it is English", new)) == [f"en/a.html: expected no Chinese, found {found}; {mend}"]


def test_the_other_name_of_a_term_is_no_text_of_the_page(site):
    hint = '<span class="term-hint" tabindex="0" data-term="它" aria-description="它">it</span>'
    assert site(en_a=("All of it is English", f"All of {hint}")) == []
    assert site(en_a=("All of it is English", f"All of {hint.replace('term-hint', 'other')}")) != []


def test_the_same_word_is_reported_once(site):
    found = site(en_a=("All of it is English", "All of 它 <b id='x'>它</b>, 她"))
    assert [line.split("found ")[1][:3] for line in found] == ["'它'", "'她'"]


def test_a_language_that_is_not_complete_may_show_its_source(site):
    table = (ROOT / "docs/languages.toml").read_text("utf-8")
    english = table[table.index('code = "en"') :]
    unfinished = (english, english.replace("complete = true", "complete = false"))
    assert site(en_a=("All of it is English", "它"), docs_languages=unfinished) == []


def test_chinese_on_an_english_page_of_the_package(site):
    assert site(en_api_m=("One sentence", "一 sentence"))[0].startswith(
        "en/api/m.html: expected no Chinese, found '一'"
    )


@pytest.mark.parametrize("text", ["Scores that fit together.", "Each <em>of the</em> rows, <code>x</code>."])
def test_an_untranslated_sentence_on_a_chinese_page_of_the_package(site, text):
    (found,) = site(zh_api_m=("一句译文。", text))
    assert found.startswith("zh/api/m.html: expected 简体中文, found '")
    assert found.endswith("behind #m.f; translate it in locale/zh_CN/LC_MESSAGES/api/m.po")


@pytest.mark.parametrize(
    ("old", "new", "expected", "found"),
    [
        ("Fig. 1.1", "Fig. 1.2", "caption-number 1.1", "caption-number 1.2"),
        ("(1.3)", "(1.4)", "eqno 1.3", "eqno 1.4"),
        ("(1.3)", "", "eqno 1.3", "nothing"),
        ('id="fig-a"', 'id="id1"', "figure #fig-a", "figure #id1"),
        ('id="tab-a"', 'id="id1"', "table #tab-a", "table #id1"),
        (">1. <", ">2. <", "section-number 1", "section-number 2"),
    ],
)
def test_other_numbers_than_in_the_first_language(site, old, new, expected, found):
    where = f"en/a.html: expected {expected} as in zh/a.html, found {found}"
    assert site(en_a=(old, new)) == [f"{where}; build both languages anew, with -E"]
