from protocols.digits import vocabulary


def test_merges_make_every_prompt_word_one_token():
    merges = vocabulary.learn_merges()
    words = {word for label in range(10) for prompt in vocabulary.prompts_of_class(label) for word in prompt.split()}
    tokens = vocabulary.vocabulary(merges, "<start>", "<end>")
    assert all(f"{word}</w>" in tokens for word in words)
    assert list(tokens.values()) == list(range(512 + len(merges) + 2))
    assert merges == vocabulary.learn_merges()


def test_prompts_name_the_digit_by_word_and_by_numeral():
    prompts = vocabulary.prompts_of_class(7)
    assert "a handwritten digit seven" in prompts
    assert "a handwritten digit 7" in prompts
    assert len(set(prompts)) == 2 * len(vocabulary.TEMPLATES)


def test_the_file_of_merges_depends_on_the_merges_only(tmp_path):
    merges = vocabulary.learn_merges()
    for name in ("one.gz", "two.gz"):
        vocabulary.write_open_clip_merges(merges, tmp_path / name)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
