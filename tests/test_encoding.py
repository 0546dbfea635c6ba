"""Text to ids: where scoring starts, what is put before and behind, what is refused."""

from dataclasses import replace

import pytest
from tiny_tokenizer import CHAT, PIECES, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignscope import InputError, read_pairs, read_prompts
from alignscope.probes.encoding import EncodedPair, Encoder, TextPolicy
from alignscope.probes.inputs import Invalid

BOS, EOS, END = PIECES["<bos>"], PIECES["<eos>"], PIECES["<end>"]


def ids(text: str) -> tuple[int, ...]:
    return tuple(PIECES[letter] for letter in text)


def encoder(*, tokenizer=None, limit=None, rows=len(PIECES), **policy) -> Encoder:
    return Encoder(tokenizer or tiny_tokenizer(), TextPolicy(**policy), vocab_rows=rows, limit=limit, source="f.jsonl")


def encode(prompt, chosen, rejected, **options) -> EncodedPair | Invalid:
    pair = read_pairs([{"prompt": prompt, "chosen": chosen, "rejected": rejected}])[0]
    return encoder(**options).encode_pair(pair)


def messages(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def chat(prompt: str, chosen: str, rejected: str, **options) -> EncodedPair | Invalid:
    options.setdefault("tokenizer", tiny_tokenizer(template=CHAT))
    return encode(messages("user", prompt), messages("assistant", chosen), messages("assistant", rejected), **options)


# ---- the boundary


def test_a_clean_boundary_starts_behind_the_prompt():
    pair = encode("p:", "xy", "z", eos="none")
    assert pair.chosen_ids == (BOS, *ids("p:xy"))
    assert pair.rejected_ids == (BOS, *ids("p:z"))
    assert (pair.start, pair.n_prompt, pair.n_chosen, pair.n_rejected) == (3, 3, 2, 1)
    assert not pair.boundary_shift
    assert pair.prompt_text == "p:"


def test_both_sides_start_where_the_first_of_them_merges():
    """T14: with a piece "ab", prompt "a" and answers "b", "c": start 1, one and two scored tokens."""
    pair = encode("a", "b", "c", eos="none")
    assert pair.chosen_ids == (BOS, PIECES["ab"])
    assert pair.rejected_ids == (BOS, *ids("ac"))
    assert (pair.start, pair.n_chosen, pair.n_rejected, pair.n_prompt, pair.boundary_shift) == (1, 1, 2, 2, True)


def test_the_pieces_at_a_shifted_boundary_can_be_named():
    pair = encode("a", "b", "c", eos="none")
    said = encoder(eos="none").pieces(pair)
    assert "ends in ['a']" in said
    assert "['ab']" in said
    assert "['a', 'c']" in said


def test_without_context_nothing_predicts_the_first_token():
    assert encode("", "x", "y").start == 1  # BOS is context enough
    for prompt in ("", "a"):  # nothing at all; or nothing left of the merge
        aside = encode(prompt, "b", "y", tokenizer=tiny_tokenizer(bos=False))
        assert (aside.reason, aside.row) == ("no_context", 1)


# ---- BOS, EOS


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_the_tokenizer_adds_in_front_stays_and_behind_goes(bos, eos):
    built = encoder(tokenizer=tiny_tokenizer(bos=bos, eos=eos), eos="none")
    assert built.prefix == ((BOS,) if bos else ())
    pair = encode("p:", "x", "y", tokenizer=tiny_tokenizer(bos=bos, eos=eos), eos="none")
    assert pair.chosen_ids == (*built.prefix, *ids("p:x"))


def test_eos_on_is_one_token_more_on_each_side():
    without, with_eos = encode("p", "x", "yz", eos="none"), encode("p", "x", "yz", eos="append")
    assert with_eos.chosen_ids == (*without.chosen_ids, EOS)
    assert with_eos.rejected_ids == (*without.rejected_ids, EOS)
    assert encode("p", "x", "yz") == with_eos  # auto, for plain text


def test_an_eos_in_the_text_is_not_doubled_and_the_text_is_flagged():
    pair = encode("p", "x<eos>", "y")
    assert pair.chosen_ids == (BOS, *ids("px"), EOS)
    assert pair.rejected_ids == (BOS, *ids("py"), EOS)
    assert pair.special_in_text
    assert not encode("p", "x", "y").special_in_text


def test_double_bos_is_refused():
    with pytest.raises(InputError, match=r"f\.jsonl, row 1: double BOS"):
        encode("<bos>p", "x", "y")
    with pytest.raises(InputError, match=r"double BOS.*template"):
        chat("p", "x", "y", tokenizer=tiny_tokenizer(template="{{ bos_token }}{{ bos_token }}" + CHAT))
    assert isinstance(encode("<bos>p", "x", "y", tokenizer=tiny_tokenizer(bos=False)), EncodedPair)


def test_a_tokenizer_without_eos_appends_none_and_says_so():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert encode("p", "x", "y", tokenizer=tokenizer).chosen_ids == (BOS, *ids("px"))
    assert encoder(tokenizer=tokenizer).facts()["eos_id"] is None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        encode("p", "x", "y", tokenizer=tokenizer, eos="append")


# ---- templates


def test_messages_go_through_the_template_which_brings_its_own_ends():
    pair = chat("hi", "x", "yz")
    assert pair.prompt_text == "|u:hi<end>|a:"
    assert pair.chosen_ids == (*ids("|u:hi"), END, *ids("|a:x"), END)  # no BOS: the template writes none
    assert (pair.n_chosen, pair.n_rejected) == (2, 3)  # the template's end is scored on both sides
    assert pair.start == len(ids("|u:hi")) + 1 + len(ids("|a:"))


def test_eos_none_and_append_are_forced_on_templated_text():
    assert chat("hi", "x", "y", eos="none").chosen_ids[-1] == PIECES["x"]
    assert chat("hi", "x", "y", eos="append").chosen_ids[-2:] == (END, EOS)
    newline = tiny_tokenizer(template=CHAT.replace("<end>{% endfor", "<end>\n{% endfor"))
    assert chat("hi", "x ", "y", tokenizer=newline).chosen_ids[-2:] == (END, PIECES["\n"])
    assert chat("hi", "x ", "y", tokenizer=newline, eos="none").chosen_ids[-2:] == ids("x ")


def test_strings_stay_raw_under_auto_and_are_counted_and_become_a_turn_under_chat():
    tokenizer = tiny_tokenizer(template=CHAT)
    raw = encode("hi", "x", "y", tokenizer=tokenizer)
    assert raw.chosen_ids == (BOS, *ids("hix"), EOS)
    assert raw.raw_on_template_model
    assert not encode("hi", "x", "y", tokenizer=tokenizer, template="none").raw_on_template_model
    assert not encode("hi", "x", "y").raw_on_template_model  # it has no template
    turned = encode("hi", "x", "y", tokenizer=tokenizer, template="chat")
    assert turned.chosen_ids == chat("hi", "x", "y").chosen_ids
    assert not turned.raw_on_template_model


def test_a_template_file_is_used_for_messages_and_strings(tmp_path):
    file = tmp_path / "other.jinja"
    file.write_text(CHAT.replace("|", "."), encoding="utf-8")
    for pair in (encode("hi", "x", "y", template=str(file)), chat("hi", "x", "y", template=str(file))):
        assert pair.prompt_text == ".u:hi<end>.a:"
    facts = encoder(template=str(file)).facts()
    assert facts["template_origin"] == str(file)
    assert facts["template_hash"] != encoder(tokenizer=tiny_tokenizer(template=CHAT)).facts()["template_hash"]


def test_templates_that_cannot_be_used_are_refused(tmp_path):
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}{{ m.content }", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.jinja, line 1: not a Jinja template"):
        encoder(template=str(broken))
    with pytest.raises(InputError, match="neither 'auto', 'chat' nor 'none', and no such file"):
        encoder(template="caht")
    with pytest.raises(InputError, match="has no chat template"):
        encoder(template="chat")
    with pytest.raises(InputError, match=r"f\.jsonl, row 1: messages need a chat template, and the tokenizer has none"):
        chat("hi", "x", "y", tokenizer=tiny_tokenizer())
    with pytest.raises(InputError, match="template='none' rules it out"):
        chat("hi", "x", "y", template="none")


def test_messages_the_template_refuses_are_one_bad_row():
    picky = tiny_tokenizer(template="{{ raise_exception('no system role') }}")
    aside = chat("hi", "x", "y", tokenizer=picky)
    assert aside.reason == "template_refused"
    assert "no system role" in aside.detail


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day():
    clock = "{{ strftime_now('%d %b %Y') | lower }}{% if strftime_now is defined %}|{% endif %}"
    pair = chat("hi", "x", "y", tokenizer=tiny_tokenizer(template=clock + CHAT))
    assert pair.prompt_text.startswith("26 jul 2024||u:hi")
    assert encoder(tokenizer=tiny_tokenizer(template=clock + CHAT)).facts()["template_date"] == "2024-07-26"
    assert encoder(tokenizer=tiny_tokenizer(template=CHAT)).facts()["template_date"] is None


# ---- length


def test_over_long_pairs_are_dropped_or_lose_the_prompts_beginning():
    kept = encode("abcdefgh", "xy", "z", limit=9, over_length="prompt_left", eos="none")
    assert kept.chosen_ids == (BOS, *ids("cdefgh"), *ids("xy"))  # 10 ids ("ab" is one) to 9; BOS is spared
    assert kept.rejected_ids == (BOS, *ids("cdefgh"), *ids("z"))  # the same cut
    assert (kept.start, kept.n_prompt) == (7, 7)
    aside = encode("abcdefgh", "xy", "z", limit=9, eos="none")
    assert (aside.reason, aside.detail) == ("too_long", "10 tokens, the limit is 9")
    assert encode("abcdefgh", "xy", "z", limit=10, eos="none").n_prompt == 8


def test_a_completion_is_never_cut():
    assert encode("cd", "xyxyxy", "z", max_length=6, over_length="prompt_left", eos="none").reason == "too_long"
    least = encode("cd", "xyxyxy", "z", max_length=7, over_length="prompt_left", eos="none")
    assert (least.start, least.chosen_ids) == (1, (BOS, *ids("xyxyxy")))  # BOS is what remains of the prompt


def test_a_longest_length_above_the_models_limit_is_refused():
    with pytest.raises(InputError, match="at most 8 tokens"):
        encoder(max_length=9, limit=8)
    assert encoder(max_length=7, limit=8).facts()["max_length"] == 7


# ---- the rest


def test_ids_without_a_row_in_the_head_name_the_row():
    with pytest.raises(InputError, match=r"f\.jsonl, row 1: id 45 .*'\|'.* head of 45"):
        encode("p|", "x", "y", rows=45)


def test_completions_that_add_nothing_or_the_same_ids_are_set_aside():
    tokenizer = tiny_tokenizer(template=CHAT.replace("m['content']", "m['content'] | trim"))
    assert chat("hi", "x", " x", tokenizer=tokenizer).reason == "identical_completions"
    mute = tiny_tokenizer(
        template="{{ messages[0].content }}{% if messages|length > 1 %}{{ messages[1].content[1:] }}{% endif %}"
    )
    assert chat("hi", "x", "yz", tokenizer=mute).reason == "no_scored_token"


def test_words_without_an_id_are_one_bad_row():
    core = Tokenizer(models.WordLevel({"go": 0, "up": 1, "down": 2}))  # no unknown token: tokenizers raises
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert encode("go", " up", " down", tokenizer=tokenizer).rejected_ids == (0, 2)
    assert encode("go", " up", " left", tokenizer=tokenizer).reason == "not_encodable"
    refused = encoder(tokenizer=tokenizer).encode_prompt(read_prompts(["left"])[0])
    assert (refused.row, refused.reason) == (1, "not_encodable")


def test_half_a_character_has_no_ids():
    """A reader sets such rows aside; one built by hand, or spelt by a template, gets no further than here."""
    pair = replace(read_pairs([{"prompt": "p:", "chosen": "x", "rejected": "y"}])[0], chosen="x\ud83d")
    found = encoder().encode_pair(pair)
    assert isinstance(found, Invalid)
    assert found.reason == "not_encodable"
    refused = encoder().encode_prompt(replace(read_prompts(["p"])[0], text="\ud83d"))
    assert (refused.reason, "half a character" in refused.detail) == ("not_encodable", True)
    template = "{{ messages[0]['content'] }}{{ '\ud83d' }}"
    assert chat("hi", "x", "y", tokenizer=tiny_tokenizer(template=template)).reason == "not_encodable"


@pytest.mark.parametrize("setting", [{"eos": "always"}, {"boundary": "ignore"}, {"over_length": "cut"}])
def test_unknown_settings_are_refused(setting):
    with pytest.raises(InputError, match="expected one of"):
        TextPolicy(**setting)


def test_prompts_keep_their_end_and_the_added_bos():
    built = encoder()
    prompt = read_prompts(["cdefgh"])[0]
    assert built.encode_prompt(prompt) == (BOS, *ids("cdefgh"))
    assert built.encode_prompt(prompt, max_tokens=4) == (BOS, *ids("fgh"))
    bare = encoder(tokenizer=tiny_tokenizer(bos=False), limit=3)
    assert bare.encode_prompt(prompt, max_tokens=4) == ids("fgh")


def test_a_prompt_is_the_beginning_of_its_pair():
    tokenizer = tiny_tokenizer(template=CHAT)
    pair = chat("hi", "x", "y")
    prompt = read_prompts([{"prompt": messages("user", "hi")}])[0]
    assert encoder(tokenizer=tokenizer).encode_prompt(prompt) == pair.chosen_ids[: pair.start]
