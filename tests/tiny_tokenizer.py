"""A tokenizer small enough to count by hand: one id a letter, and one piece, "ab", that crosses boundaries."""

from string import ascii_lowercase, digits

from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<end>")
LETTERS = (*ascii_lowercase, *digits, " ", "\n", ".", ":", "|")
PIECES = {piece: i for i, piece in enumerate((*SPECIAL, *LETTERS, "ab"))}

CHAT = (
    "{% for m in messages %}|{{ m['role'][0] }}:{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}|a:{% endif %}"
)


def tiny_tokenizer(
    *, bos: bool = True, eos: bool = False, template: str | None = None, pad: str = "<pad>"
) -> PreTrainedTokenizerFast:
    """Letters to ids; `bos` puts <bos> before plain text, `eos` puts <eos> behind it."""
    core = Tokenizer(models.BPE(vocab=PIECES, merges=[("a", "b")], unk_token="<unk>"))
    single = f"{'<bos> ' if bos else ''}$A{' <eos>' if eos else ''}"
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, PIECES[name]) for name in ("<bos>", "<eos>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token=pad,
        unk_token="<unk>",
        extra_special_tokens=["<end>"],
        chat_template=template,
    )
