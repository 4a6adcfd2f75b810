"""The templates of the systems: what each puts round texts and images, as data. See `template` for the fields.

What one set of a config changes goes into `template_options`: a field of `Template`, or the name of a token.
"""

import dataclasses
import difflib
from typing import Any

from mmjax.data import chat
from mmjax.data.template import Encoded, Template, TemplateSkip
from mmjax.data.tokenizer import Tokenizer

__all__ = ["TEMPLATES", "Encoded", "Template", "TemplateSkip", "check_specials", "make_template"]

_SENTENCE = dict(bos="<s>", eos="</s>")
_MINIGPT4 = Template(
    _SENTENCE | dict(image="<image>"), begin="{bos}", end="###", before_image="<Img>", after_image="</Img> ",
    num_slots=32, roles={"user": ("Human: ", " "), "assistant": ("Assistant: ", "")}, separator="###")
_EMU2 = Template(
    _SENTENCE | dict(image="<image>", frame="[gIMG]", begin_image="[IMG]", end_image="[/IMG]"),
    before_image="{begin_image}", after_image="{end_image}", frame_slot="{frame}", num_slots=64, learn_marks=True)

TEMPLATES: dict[str, Template] = {
    # Text alone: `<s> text </s>`.
    "language": Template(_SENTENCE, images="none"),

    # Interleaved pages for cross-attention: `<s> <image> text <EOC> <image> text <EOC>`. `<EOC>` stands before every
    # image but one that opens the document, and at the end; caption pairs set eos. (arXiv:2204.14198, A.3.1, A.3.2)
    "flamingo": Template(
        dict(bos="<s>", eos="", eoc="<EOC>", image="<image>"), end="{eoc}{eos}", between="{eoc}",
        before_image="{image}", cross_attention=True),

    # `<s> text </s>`; the image stands beside the text, which does not say where. (arXiv:2103.00020)
    "clip": Template(_SENTENCE, cross_attention=True),

    # `<s> <image> slot*R </image> text </s>`. Nothing of the image block is learned, `</image>` included, as in the
    # released LAION loader. (arXiv:2302.14045, 2.3 and 3.1)
    "kosmos1": Template(
        _SENTENCE | dict(image="<image>", end_image="</image>"), before_image="{image}", after_image="{end_image}",
        num_slots=64),

    # Stage 2, decoder-only: `query*32 <s> caption \n`. OPT spells <s> as </s>. (arXiv:2301.12597; LAVIS blip2_opt)
    "blip2": Template(_SENTENCE | dict(image="<image>"), end="\n", num_slots=32, images="first"),

    # Stage 2: `<s>###Human: <Img> query*32 </Img> instruction ###Assistant: answer###`; the answer and the ### after it
    # are learned. All marks are ordinary text to Vicuna. (arXiv:2304.10592, 3.3; prompts/alignment.txt)
    "minigpt4": _MINIGPT4,

    # Stage 1: `<s> query*32 caption \n`, without any prompt.
    "minigpt4_pairs": dataclasses.replace(_MINIGPT4, before_image="", after_image="", end="\n", roles={}, separator=""),

    # `<s> slot*144 text slot*144 text </s>`: the paper gives no marks round an image. (arXiv:2403.09611)
    "mm1": Template(_SENTENCE | dict(image="<image>"), num_slots=144),

    # `<s> [IMG] slot*64 [/IMG] text </s>`; a video is F such blocks of [gIMG]. [IMG] and [/IMG] are learned as text is.
    # What regression learns are the positions before a slot. (arXiv:2312.13286, 2.2; Emu2/emu/constants.py)
    "emu2": _EMU2,

    # `<s>system [USER]: instruction [ASSISTANT]: answer</s>`; the answer is learned, no image is. (App. B)
    "emu2_chat": dataclasses.replace(
        _EMU2, tokens=_EMU2.tokens | dict(user="[USER]", assistant="[ASSISTANT]"), learn_marks=False,
        roles={"system": ("", " "), "user": ("{user}: ", " "), "assistant": ("{assistant}: ", "{eos}")}),

    # Conversations by a Jinja template, ChatML unless `chat` is set; images by slots where they stand.
    "chat": Template(
        dict(bos="", eos="<|im_end|>", start="<|im_start|>", image="<image>"), num_slots=64, chat=chat.CHATML),
}


def make_template(name: str, **options: Any) -> Template:
    """A template with some of its fields or tokens changed.

    Args:
        name: a key of TEMPLATES.
        **options: fields of `Template`, or names of tokens with the special token to use; "" leaves it out.

    Raises:
        ValueError: for an unknown name or option, naming the nearest or listing the known, and for a value that a
            field cannot have.
    """
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TEMPLATES)}"
        raise ValueError(f"template {name!r} is unknown; {hint}")
    template = TEMPLATES[name]
    fields = {f.name for f in dataclasses.fields(Template)} - {"tokens"}
    known = {*fields, *template.tokens}
    if unknown := sorted(options.keys() - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
        raise ValueError(f"template {name!r} has no option {unknown[0]!r}; {hint}")
    tokens = {**template.tokens, **{k: v for k, v in options.items() if k not in fields}}
    try:
        return dataclasses.replace(template, tokens=tokens, **{k: v for k, v in options.items() if k in fields})
    except ValueError as e:
        raise ValueError(f"template {name!r}: {e}") from e


def check_specials(template: Template, tokenizer: Tokenizer):
    """Raises ValueError if the tokenizer lacks a special token that the template names."""
    for name in filter(None, template.tokens.values()):
        tokenizer.id(name)
