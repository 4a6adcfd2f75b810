"""Conversations laid out by a Jinja chat template, as published with a language model.

The template sees a mark in place of every text and image, so what people wrote is never parsed: not as Jinja, and
not as a special token. A special token counts as one only where the template itself spells it.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from mmjax.data.documents import DocumentError, Segment

CHATML = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
_OPEN, _CLOSE, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"        # noncharacters: no template spells them
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}|({_BEGIN})|({_END})")


def read_chat_template(path: str | Path) -> str:
    """The chat template of a published model.

    Args:
        path: a `.jinja` file, a `tokenizer_config.json`, or the folder that holds either.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the JSON holds no single template.
    """
    path = Path(path)
    places = [path / "chat_template.jinja", path / "tokenizer_config.json"] if path.is_dir() else [path]
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no chat template at {path}; give a chat_template.jinja or a tokenizer_config.json")
    text = found.read_text(encoding="utf-8")
    if found.suffix == ".json":
        text = json.loads(text).get("chat_template")
        if not isinstance(text, str):
            raise ValueError(f"{found} has no chat_template that is one text")
    return text


def render(source: str, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, **tokens: str) -> str:
    """Renders a chat template in a sandbox, with what transformers offers it.

    Args:
        source: the template.
        messages: of role and content.
        add_generation_prompt: whether the assistant's turn is opened at the end.
        **tokens: bos_token, eos_token, ...

    Raises:
        DocumentError: if the template refuses the messages, by `raise_exception` say.
        ValueError: if it is not a Jinja template.
    """
    try:
        template = _compiled(source)
    except jinja2.TemplateSyntaxError as e:
        raise ValueError(f"chat template line {e.lineno}: {e.message}") from e
    try:
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokens)
    except Exception as e:                              # a template's own code may raise anything
        roles = ", ".join(m["role"] for m in messages)
        raise DocumentError(f"the chat template refuses a conversation of {roles}: {e or type(e).__name__}") from e


def write(template: Any, segments: Sequence[Segment], writer: Any, prompt: bool) -> None:
    """Writes a conversation. Learned are the assistant's words and what ends them: all that `{% generation %}` encloses
    or, in a template without it, the text behind up to its first special token.

    Args:
        template: a `Template` with `chat`.
        segments: of the document, each with a role.
        writer: takes segments by `segment(segment, learned)` and laid-out tokens and text by `out`.
        prompt: the assistant's turn is left open.
    """
    messages, learned = _messages(segments, template.learned_roles)
    answered = learned[len(segments) - 1]
    tokens = {f"{name}_token": token for name, token in template.tokens.items()}
    text = render(template.chat, messages, prompt and not answered, **tokens)
    if prompt and answered:
        text = text[:text.rindex(_CLOSE) + 1]
    parts = list(_parts(text, _special_names(template, writer.out.specials)))
    order = [value for kind, value in parts if kind == "segment"]
    if order != list(range(len(segments))):
        raise DocumentError(f"the chat template drops, repeats or moves messages: of {len(segments)} pieces of the "
                            f"conversation it shows {order}")
    _Layout(segments, learned, writer, any(kind == "begin" for kind, _ in parts)).write(parts)


class _Layout:
    def __init__(self, segments: Sequence[Segment], learned: Mapping[int, bool], writer: Any, has_marks: bool):
        self._segments, self._learned, self._writer, self._has_marks = segments, learned, writer, has_marks
        self._learn = False                             # what the template itself spells, for now

    def write(self, parts: Iterable[tuple[str, Any]]):
        for kind, value in parts:
            match kind:
                case "segment":
                    self._writer.segment(self._segments[value], self._learned[value])
                    self._learn = self._learn if self._has_marks else self._learned[value]
                case "begin" | "end":
                    self._learn = kind == "begin"
                    self._writer.weight = float(self._learn)
                case "special":
                    self._writer.out.special(value, self._weight())
                    self._learn = self._learn and self._has_marks
                case "text":
                    self._writer.out.text(value, self._weight())

    def _weight(self) -> float:
        return self._writer.weight if self._learn else 0.0


def _messages(segments: Sequence[Segment], learned_roles: Sequence[str]
              ) -> tuple[list[dict[str, str]], dict[int, bool]]:
    """Messages with a mark for each segment, and which segments are learned."""
    messages, learned = [], {}
    for role, turn in itertools.groupby(enumerate(segments), key=lambda item: item[1].role):
        if not role:
            raise DocumentError("a conversation has a segment without a role")
        numbers = [i for i, _ in turn]
        messages.append(dict(role=role, content="".join(f"{_OPEN}{i}{_CLOSE}" for i in numbers)))
        learned |= dict.fromkeys(numbers, role in learned_roles)
    return messages, learned


def _parts(text: str, specials: re.Pattern | None) -> Iterator[tuple[str, Any]]:
    """(segment, number), (begin or end, of what is generated), (special, its name) and (text, ordinary text)."""
    position = 0
    for mark in _MARK.finditer(text):
        yield from _literal(text[position:mark.start()], specials)
        position = mark.end()
        yield ("segment", int(mark[1])) if mark[1] else ("begin" if mark[2] else "end", None)
    yield from _literal(text[position:], specials)


def _literal(text: str, specials: re.Pattern | None) -> Iterator[tuple[str, str]]:
    for k, part in enumerate(specials.split(text) if specials else [text]):
        if part:
            yield ("special" if k % 2 else "text", part)


def _special_names(template: Any, known: Iterable[str]) -> re.Pattern | None:
    names = sorted({*known, *filter(None, template.tokens.values())}, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, names))})") if names else None


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`, which transformers has for what the assistant generates."""

    tags = {"generation"}                               # noqa: RUF012 -- as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = lambda c: jinja2.nodes.Output([jinja2.nodes.TemplateData(c)], lineno=line)       # noqa: E731
        return [mark(_BEGIN), *body, mark(_END)]


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    sandbox.globals["raise_exception"] = _refuse
    return sandbox.from_string(source)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
