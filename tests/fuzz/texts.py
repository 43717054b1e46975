"""What people and attackers type, and what they put where a value belongs."""

TEXTS = [
    "", " ", "\t", "\n", "-", "--", "x" * 5000, "\x1b[31mred\x07", "a\x00b".replace("\x00", "\x01"), "\u202egnp",
    "模型", "é" * 200, "\udcff", "%s%n{0}", "'; DROP TABLE cells; --", '"', "$(touch canary)", "`touch canary`",
    "../..", "=cmd|'/C calc'!A0", "nan", "inf", "-inf", "NaN", "1e999", "-1", "0", "1_0", "1,5", "١", "0x10",
    "1e-400", "9" * 40,
    "-" + "9" * 40, "2147483648", "9223372036854775808", "os:system", "builtins:eval", "[]", "{}", "null", "true", ",",
    ",,", "1,", "*", "?", "~", "file:" + 3 * "/" + "etc/passwd", "http://[",
    "<script>alert(1)</script>", "con", "a/b", "a\\b",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1.5, -1e308, 1e308, 10**30, "", "x", "\x1b[31m", "os:system", "../../../out", [], [[]],
    {}, {"x": {}}, [None], ["x"] * 3, [1, "a"], "9" * 400, "模型",
]  # fmt: skip
LITERALS = [
    "true", "-1", "0", "1.5", "nan", "inf", "-inf", "99999999999999999999", '""', '"x"', "[]", "{}", "[[]]", "[1, 'a']",
    '"os:system"', '"../../out"', '"\\u001b[31m"', "{ x = 1 }", "1979-05-27", "[-1]", "[0]", "[1e400]", '"/dev/zero"',
]  # fmt: skip
PLACES = ["/dev/null", "/dev/zero", "/dev/urandom", "/proc/self/mem", "/etc", "missing", "missing/deep", "folder", "."]
HTML = b"<!DOCTYPE html><html><body>404</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
