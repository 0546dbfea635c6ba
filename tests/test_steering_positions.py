"""Which tokens are edited: counted among real tokens, under padding, caches and templates."""

import pytest
import torch
from spinal_models import tiny_model
from tiny_tokenizer import CHAT, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import alignscope
import zoo as models
from alignscope import InputError
from alignscope.probes.subject import Tokens
from alignscope.probes.token_positions import TokenReader, announced_prompts, real_index
from alignscope.steering import Positions
from alignscope.steering.positions import shared_prefix_length

LEFT = torch.tensor([[0, 0, 1, 1, 1]])


def columns(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


class TestMasks:
    def test_real_tokens_are_counted_from_the_first_one(self):
        assert real_index(LEFT).tolist() == [[-1, -1, 0, 1, 2]]
        assert real_index(LEFT.flip(1)).tolist() == [[0, 1, 2, -1, -1]]

    def test_a_prefix_is_of_real_tokens_not_of_columns(self):
        assert columns(Positions(prefix=1).mask(LEFT)) == [3, 4]

    def test_padding_is_never_edited(self):
        assert columns(Positions().mask(LEFT)) == [2, 3, 4]
        assert columns(Positions().mask(LEFT.flip(1).bool())) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("positions", "expected"),
        [
            (Positions(last=2), [3, 4]),
            (Positions(last=9, prefix=1), [3, 4]),
            (Positions(span=(1, 2)), [3]),
            (Positions("prompt"), [2, 3, 4]),
            (Positions("generation"), []),
            (Positions("prompt", prompt=(2,)), [2, 3]),
            (Positions("generation", prompt=(2,)), [4]),
            (Positions(last=1, prompt=(2,)), [3]),
            (Positions(prefix=3), []),
        ],
    )
    def test_conditions_hold_together(self, positions, expected):
        assert columns(positions.mask(LEFT)) == expected

    @pytest.mark.parametrize(
        ("positions", "expected"),
        [
            (Positions(), [0, 1]),
            (Positions(prefix=2), [1]),
            (Positions("generation"), [0, 1]),
            (Positions("prompt"), []),
            (Positions(last=1), []),
            (Positions("prompt", prompt=(2,)), [0]),
        ],
    )
    def test_with_a_cache_the_mask_covers_both_and_the_answer_the_input(self, positions, expected):
        mask = positions.mask(LEFT, past=3)
        assert mask.shape == (1, 2)
        assert columns(mask) == expected

    def test_rows_have_their_own_prompts_also_when_they_are_repeated(self):
        positions = Positions("generation", prompt=(1, 3))
        mask = positions.mask(torch.ones(4, 3, dtype=torch.long))
        assert mask.sum(1).tolist() == [2, 2, 0, 0]

    @pytest.mark.parametrize("past", [5, -1])
    def test_a_mask_without_a_column_of_input_is_refused(self, past):
        with pytest.raises(ValueError, match="fewer than the 5 columns"):
            Positions().mask(LEFT, past=past)

    @pytest.mark.parametrize(
        "options",
        [
            {"where": "some"},
            {"prefix": -1},
            {"prefix": "all"},
            {"last": 0},
            {"last": 1, "where": "generation"},
            {"span": (2, 2)},
        ],
    )
    def test_values_out_of_range_are_refused(self, options):
        with pytest.raises(InputError, match="expected"):
            Positions(**options)

    @pytest.mark.parametrize("positions", [Positions(), Positions("prompt", "auto", 3, (1, 5))])
    def test_a_file_brings_them_back(self, positions):
        assert Positions.from_dict(positions.to_dict()) == positions

    def test_those_of_one_batch_are_not_kept(self):
        with pytest.raises(InputError, match="one batch"):
            Positions(prompt=(3,)).to_dict()


class TestAutoPrefix:
    def test_what_templated_prompts_share_is_left_alone(self):
        """|u:a<end>|a: after the template's own; tokens `|`, `u`, `:` are shared."""
        assert shared_prefix_length(tiny_tokenizer(bos=False, template=CHAT), vocab_rows=50) == 3

    def test_the_zoo_template_shares_its_role_token(self):
        subject = alignscope.wrap(models.model("one_layer_llama"), models.tokenizer())
        assert Positions(prefix="auto").resolved(subject) == Positions(prefix=1)

    @pytest.mark.parametrize(("bos", "expected"), [(True, 1), (False, 0)])
    def test_without_a_template_it_is_the_bos(self, bos, expected):
        assert shared_prefix_length(tiny_tokenizer(bos=bos), vocab_rows=50) == expected

    @pytest.mark.parametrize(("words", "expected"), [("A B", 2), ("0 1", 2), ("q", None)])
    def test_letters_that_the_tokenizer_does_not_know_are_no_shared_prompt(self, words, expected):
        """`a` and `b` are both <unk>: then other messages tell where prompts differ, or nothing does."""
        vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", "USER", "SAYS", "END", *words.split()])}
        inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        inner.pre_tokenizer = Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>")
        tokenizer.chat_template = "{% for m in messages %}USER SAYS {{ m['content'] }} END{% endfor %}"
        if expected is None:
            with pytest.raises(InputError, match="all one-letter messages alike; give the number of tokens"):
                shared_prefix_length(tokenizer, vocab_rows=50)
        else:
            assert shared_prefix_length(tokenizer, vocab_rows=50) == expected

    def test_unsettled_it_has_no_mask(self):
        with pytest.raises(ValueError, match="depends on the tokenizer"):
            Positions(prefix="auto").mask(LEFT)

    def test_it_needs_a_tokenizer(self):
        with pytest.raises(InputError, match="wrapped without a tokenizer"):
            Positions(prefix="auto").resolved(alignscope.wrap(tiny_model(blocks=1, width=16)))

    def test_a_number_is_settled_already(self):
        positions = Positions(prefix=4)
        assert positions.resolved(alignscope.wrap(tiny_model(blocks=1, width=16))) is positions


class Cache:
    """The part of a transformers cache that is read."""

    def __init__(self, length: int | None, filled: bool = True) -> None:
        self.length, self.filled = length, filled

    def get_seq_length(self) -> int:
        if self.length is None:
            raise ValueError("recurrent states alone")
        return self.length

    def has_previous_state(self) -> bool:
        return self.filled


def ids(width: int, rows: int = 1) -> torch.Tensor:
    return torch.zeros(rows, width, dtype=torch.long)


def first(tokens: Tokens) -> list[int]:
    return tokens.index[0].tolist()


class TestReader:
    def test_the_mask_comes_first(self):
        tokens = TokenReader().read({"input_ids": ids(5), "attention_mask": LEFT, "position_ids": ids(5) + 9})
        assert (first(tokens), tokens.prompt.tolist()) == ([-1, -1, 0, 1, 2], [3])

    def test_its_last_columns_are_the_input(self):
        reader = TokenReader()
        reader.read({"input_ids": ids(4), "attention_mask": LEFT[:, :4], "past_key_values": Cache(0)})
        tokens = reader.read({"input_ids": ids(1), "attention_mask": LEFT, "past_key_values": Cache(4)})
        assert (first(tokens), tokens.prompt.tolist()) == ([2], [2])

    def test_a_cache_that_was_cropped_does_not_confuse_it(self):
        reader = TokenReader()
        for length, mask in ((0, 4), (4, 7), (5, 7)):  # three guesses, of which two were wrong
            given = {"input_ids": ids(mask - length), "past_key_values": Cache(length)}
            tokens = reader.read(given | {"attention_mask": torch.ones(1, mask, dtype=torch.long)})
            assert first(tokens) == list(range(length, mask))
            assert first(TokenReader().read(given)) == list(range(length, mask))

    def test_then_position_ids(self):
        positions = torch.tensor([[7, 8]])
        given = {"input_ids": ids(2), "position_ids": positions, "past_key_values": Cache(3)}
        assert first(TokenReader().read(given)) == [7, 8]
        assert first(TokenReader().read(given | {"position_ids": positions.expand(3, 1, 2)})) == [7, 8]

    def test_a_mask_of_rows_by_columns_says_nothing_of_places(self):
        mask = torch.zeros(1, 1, 2, 2)
        assert first(TokenReader().read({"input_ids": ids(2), "attention_mask": mask})) == [0, 1]

    def test_then_the_length_of_the_cache(self):
        assert first(TokenReader().read({"input_ids": ids(2), "past_key_values": Cache(3)})) == [3, 4]

    def test_a_mask_of_the_input_alone_marks_padding_behind_a_cache(self):
        given = {"input_ids": ids(3), "attention_mask": torch.tensor([[0, 1, 1]]), "past_key_values": Cache(3)}
        assert first(TokenReader().read(given)) == [-1, 3, 4]

    def test_then_a_count_of_real_tokens_a_row(self):
        reader = TokenReader()
        mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
        reader.read({"input_ids": ids(3, 2), "attention_mask": mask, "cache_params": Cache(None, filled=False)})
        for step in (0, 1):
            tokens = reader.read({"input_ids": ids(1, 2), "cache_params": Cache(None)})
            assert tokens.index.flatten().tolist() == [1 + step, 3 + step]
            assert tokens.prompt.tolist() == [1, 3]

    def test_a_pass_without_a_cache_begins_anew(self):
        reader = TokenReader()
        reader.read({"input_ids": ids(5)})
        assert first(reader.read({"input_ids": ids(2), "state": None})) == [0, 1]

    def test_a_cache_filled_before_is_the_prompt(self):
        assert TokenReader().read({"input_ids": ids(2), "past_key_values": Cache(3)}).prompt.tolist() == [3]

    def test_prompts_that_are_announced_are_believed_for_every_beam(self):
        with announced_prompts(torch.tensor([2, 4])):
            assert TokenReader().read({"inputs_embeds": torch.zeros(4, 5, 8)}).prompt.tolist() == [2, 2, 4, 4]

    def test_a_state_made_elsewhere_is_refused(self):
        with pytest.raises(InputError, match="outside of the edit"):
            TokenReader().read({"input_ids": ids(1), "state": [torch.zeros(1)]})

    def test_a_pass_without_ids_is_refused(self):
        with pytest.raises(InputError, match="without input_ids or inputs_embeds"):
            TokenReader().read({"attention_mask": LEFT})
