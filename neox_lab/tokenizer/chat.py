r"""Conversations as text: chat templates.

A chat model was trained on conversations written in one fixed way, which its template knows::

    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    talk = [{"role": "user", "content": "Hello"}]
    tokenizer.apply_chat_template(talk, tokenize=False)  # "user: Hello\n"
    batch = tokenizer.apply_chat_template(talk, return_tensors="pt")

Templates are read from a checkpoint's ``chat_template.jinja`` and tokenizer_config.json, and are
saved with the tokenizer. What they may do is said in ``sandbox``.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer import control_tokens
from neox_lab.tokenizer.batch import BatchEncoding, as_tensor
from neox_lab.tokenizer.encoding import Encoder
from neox_lab.tokenizer.settings import Checked, chat_templates, tokens
from neox_lab.tokenizer.tool_schema import tool_schemas

if TYPE_CHECKING:
    from types import ModuleType

    from tokenizers import Encoding

    from neox_lab.tokenizer.arguments import Lengths
    from neox_lab.tokenizer.sandbox import Span

Message: TypeAlias = Mapping[str, object]
"""One turn: ``{"role": "user", "content": "Hello"}``, and what else the template reads."""

Conversation: TypeAlias = Sequence[Message]

_LEAST_JINJA = (3, 1, 6)  # older ones let templates out of the sandbox
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names that one thing goes by


class ChatEncoder(Encoder):
    """An encoder that also writes conversations out.

    Attributes:
        chat_template: a Jinja template, several by name, or None.
        chat_control_tokens: which added tokens ``sanitize_control_tokens`` reads as text beside the
            special ones; None for those that the template itself writes.
    """

    chat_template = Checked(chat_templates)
    chat_control_tokens = Checked(tokens)

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        tools: Sequence[object] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> Any:
        """Write a conversation, or a list of them, as the model was trained on them.

        Args:
            conversation: messages, as dictionaries with "role" and "content".
            tools: what the model may call, for templates that tell it: JSON schemas, or functions
                with type hints and a docstring in Google's style.
            documents: what the model may read, for templates that show it: dictionaries, as a rule
                with "title" and "text".
            chat_template: a template, or the name of one of several; the tokenizer's own where
                None, of several the one named "tool_use" where there are tools and it exists, and
                else "default".
            add_generation_prompt: end with what stands before an answer, where the template can.
            continue_final_message: end inside the last message, for the model to go on with it; a
                str names what of the message to go on with, if not "content".
            tokenize: return ids; else text.
            sanitize_control_tokens: read special tokens in messages, tools, documents and
                ``kwargs`` as text, so that nobody can write the template's own marks there.
            padding: as in a call, and so are ``truncation``, ``max_length``, ``return_tensors``.
            truncation: see ``padding``.
            max_length: see ``padding``.
            return_tensors: see ``padding``.
            return_dict: return a ``BatchEncoding`` rather than ids alone.
            return_assistant_tokens_mask: add ``assistant_masks`` ``[batch, pos]``, 1 where the
                template's ``{% generation %}`` blocks stand.
            tokenizer_kwargs: further arguments of the call.
            **kwargs: variables for the template; they win over the tokenizer's special tokens,
                which it knows by role.

        Returns:
            Text, ids or a ``BatchEncoding``; a list, or with rows, for a list of conversations.

        Raises:
            TokenizerError: there is no template or no message, arguments contradict, a tool cannot
                be described, or the template refuses (then also jinja2's ``TemplateError``).
            ImportError: jinja2 is absent or too old to be safe.
        """
        return_dict = return_dict and tokenize
        _check_together(
            opened=add_generation_prompt,
            left_open=bool(continue_final_message),
            tokenize=tokenize,
            sanitized=sanitize_control_tokens,
            columns=return_dict,
            masked=return_assistant_tokens_mask,
        )
        template = self.get_chat_template(chat_template, tools)
        conversations, batched = _conversations(conversation)
        talks = [_plain_messages(talk) for talk in conversations]
        given = kwargs | {"tools": tool_schemas(tools), "documents": _documents(documents)}
        if sanitize_control_tokens:
            marks = control_tokens.Marks(self._control_tokens(template))
            talks = [marks.put(talk) for talk in talks]
            given = marks.put(_sandbox().plain(given))
        variables = self.special_tokens_map | given
        variables["add_generation_prompt"] = add_generation_prompt
        written = _Template(template, variables)
        if return_assistant_tokens_mask:
            marked = [written.marked(talk) for talk in talks]
            texts = [text for text, _ in marked]
        elif continue_final_message:
            field = continue_final_message if continue_final_message is not True else "content"
            texts = [written.left_open(talk, field) for talk in talks]
        else:
            texts = [written.whole(talk) for talk in talks]
        if not tokenize:
            return texts if batched else texts[0]
        options = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
            **(tokenizer_kwargs or {}),
        }
        if sanitize_control_tokens:
            out = self._encode_marked(texts, batched, **options)
        else:
            options = {"add_special_tokens": False} | options
            out = self(texts if batched else texts[0], **options)
        if return_assistant_tokens_mask:
            spans = [said for _, said in marked]
            masks = [_mask(row, said) for row, said in zip(out.encodings or [], spans, strict=True)]
            if kind := options["return_tensors"]:
                out["assistant_masks"] = as_tensor("assistant_masks", masks, kind)
            else:
                out["assistant_masks"] = masks if batched else masks[0]
        return out if return_dict else out["input_ids"]

    def encode_message_with_chat_template(
        self,
        message: Message,
        conversation_history: Conversation | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Ids that a message adds to those of the conversation before it, ``[pos]``.

        Args:
            message: the new message.
            conversation_history: what was said before.
            **kwargs: arguments of ``apply_chat_template``.

        Raises:
            TokenizerError: ``add_generation_prompt`` is among them, or as ``apply_chat_template``.
        """
        if "add_generation_prompt" in kwargs:
            raise TokenizerError(
                "A single message has no add_generation_prompt: add it afterwards."
            )
        kwargs |= {"tokenize": True, "return_dict": False}
        history = list(conversation_history or [])
        ids: list[int] = self.apply_chat_template([*history, message], **kwargs)
        before = self.apply_chat_template(history, **kwargs) if history else []
        same = 0
        while same < min(len(ids), len(before)) and ids[same] == before[same]:
            same += 1
        return ids[same:]

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[object] | None = None
    ) -> str:
        """The template that ``apply_chat_template`` would use.

        Raises:
            TokenizerError: there is none, or none of several is the obvious one.
        """
        own = self.chat_template
        if isinstance(own, dict):
            if chat_template is not None:
                return own.get(chat_template, chat_template)
            for name in ("tool_use", "default") if tools is not None else ("default",):
                if name in own:
                    return own[name]
            raise TokenizerError(
                "The tokenizer has several chat templates and none is named 'default': pass "
                f"chat_template= with one of {', '.join(sorted(own))}."
            )
        template = own if chat_template is None else chat_template
        if template is None:
            raise TokenizerError(
                "The tokenizer has no chat template: set tokenizer.chat_template, or pass "
                "chat_template=, a Jinja template that writes `messages` out."
            )
        if not isinstance(template, str):
            raise TokenizerError(
                f"chat_template={template!r:.60}; expected a Jinja template (str)."
            )
        return template

    def _control_tokens(self, template: str) -> list[str]:
        """The tokens that messages must not be able to write."""
        added = self.added_tokens_decoder.values()
        if self.chat_control_tokens is not None:
            named = set(self.chat_control_tokens)
            return [token.content for token in added if token.special or token.content in named]
        written = _sandbox().literal_text(template)
        return [
            token.content
            for token in added
            if token.special or (token.content in written and not token.content.isspace())
        ]

    def _encode_marked(self, texts: list[str], batched: bool, **options: Any) -> BatchEncoding:
        """Encode texts in which ``Marks`` has set control tokens apart, which are read as text."""
        lengths = {name: options.pop(name) for name in ("padding", "truncation", "max_length")}
        settled = self._lengths(**lengths)
        rows = [control_tokens.encode(self, text) for text in texts]
        rows = [_cut(row, settled, self.truncation_side) for row in rows]
        kind = options.pop("return_tensors")
        return self.pad(
            {"input_ids": rows if batched or kind else rows[0]},
            padding=settled.padding,
            max_length=settled.max_length,
            return_tensors=kind,
            **options,
        )


def _check_together(
    *, opened: bool, left_open: bool, tokenize: bool, sanitized: bool, columns: bool, masked: bool
) -> None:
    """Refuse options of ``apply_chat_template`` that contradict each other."""
    if masked and not columns:
        raise TokenizerError(
            "return_assistant_tokens_mask=True needs return_dict=True and tokenize=True."
        )
    if left_open and (opened or masked):
        raise TokenizerError(
            "continue_final_message goes neither with add_generation_prompt, which begins a new "
            "message, nor with return_assistant_tokens_mask."
        )
    if sanitized and (masked or not tokenize):
        raise TokenizerError(
            "sanitize_control_tokens=True needs tokenize=True, and does not go with "
            "return_assistant_tokens_mask=True."
        )


def _sandbox() -> ModuleType:
    """The module that runs templates.

    Raises:
        ImportError: jinja2 is absent or too old.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("Chat templates need jinja2: pip install 'jinja2>=3.1.6'.") from error
    version = tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3])
    if version < _LEAST_JINJA:
        raise ImportError(
            f"Chat templates are other people's programs, and jinja2 {jinja2.__version__} does not "
            "keep them in its sandbox: pip install 'jinja2>=3.1.6'."
        )
    from neox_lab.tokenizer import sandbox

    return sandbox


def _conversations(conversation: object) -> tuple[list[Any], bool]:
    """Conversations as lists of messages, and whether there were several."""
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, list | tuple):
        raise TokenizerError(
            f"A conversation is a list of messages, and {type(conversation).__name__} was given."
        )
    if not conversation:
        raise TokenizerError("The conversation is empty: give at least one message.")
    if isinstance(conversation[0], list | tuple) or hasattr(conversation[0], "messages"):
        return [getattr(talk, "messages", talk) for talk in conversation], True
    return [conversation], False


def _plain_messages(talk: object) -> list[dict[str, Any]]:
    """Messages as plain data, without what is None, which templates would write out as "None"."""
    messages = _sandbox().plain([*talk] if isinstance(talk, tuple) else talk)
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise TokenizerError(
            f"A conversation is a list of messages, each a dictionary such as "
            f'{{"role": "user", "content": "Hello"}}; {talk!r:.80} is not.'
        )
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read it by."""
    found = [message[name] for name in _REASONING if name in message]
    return {"thinking": found[0], **message, "reasoning_content": found[0]} if found else message


def _documents(documents: Sequence[object] | None) -> Sequence[object] | None:
    for document in documents or ():
        if not isinstance(document, Mapping):
            raise TokenizerError(
                f"A document is a dictionary, as a rule with 'title' and 'text', and "
                f"{document!r:.60} is {type(document).__name__}."
            )
    return documents


class _Template:
    """A template with the variables that all conversations share."""

    def __init__(self, template: str, variables: Mapping[str, object]) -> None:
        self.template = template
        self.variables = variables

    def whole(self, messages: list[dict[str, Any]]) -> str:
        """The conversation as the template writes it."""
        aliased = [_aliased(message) for message in messages]
        text: str = _sandbox().write(self.template, {**self.variables, "messages": aliased})
        return text

    def marked(self, messages: list[dict[str, Any]]) -> tuple[str, list[Span]]:
        """The conversation, and where the assistant speaks."""
        if not _GENERATION.search(self.template):
            warnings.warn(
                "assistant_masks will be 0 everywhere: the chat template has no "
                "{% generation %} block around what the assistant says.",
                stacklevel=4,
            )
        aliased = [_aliased(message) for message in messages]
        written: tuple[str, list[Span]] = _sandbox().write_marked(
            self.template, {**self.variables, "messages": aliased}
        )
        return written

    def left_open(self, messages: list[dict[str, Any]], field: str) -> str:
        """The conversation up to the end of ``field`` of the last message.

        A mark is put behind that text, and what the template writes from the mark on is cut off.

        Raises:
            TokenizerError: there is no such text, or the template does not write it out.
        """
        mark = f"{secrets.token_hex(16)} "  # the space tells whether the template trims its text
        messages = [_aliased(message) for message in messages]
        last = messages[-1] if messages else {}
        said = last.get(field)
        names = [field]
        if field in _REASONING:
            names = [name for name in _REASONING if last.get(name) == said]
        blocks = _text_blocks(said)
        if blocks:
            said = blocks[-1]["text"]
        if not isinstance(said, str) or not any(name in self.template for name in names):
            raise TokenizerError(
                f"continue_final_message: the last message has no text {field!r} to go on with, or "
                "the template does not read it."
            )
        if blocks:
            blocks[-1]["text"] = said + mark
        else:
            last |= dict.fromkeys(names, said + mark)
        text: str = _sandbox().write(self.template, {**self.variables, "messages": messages})
        if mark.strip() not in text or said.strip() not in text:
            raise TokenizerError(
                f"continue_final_message: the template does not write the last message's {field!r} "
                "out as it is, so there is nothing to go on with."
            )
        kept = text[: text.rindex(mark.strip())]
        return kept if mark in text[len(kept) :] else kept.rstrip()


def _text_blocks(content: object) -> list[dict[str, Any]]:
    """The parts of a message's content that hold text, where it has parts."""
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and "text" in part]


def _mask(encoding: Encoding, spans: list[Span]) -> list[int]:
    """1 for each token that holds a character of ``spans``, ``[pos]``."""
    mask = [0] * len(encoding)
    behind = None
    for index, (start, end) in enumerate(encoding.offsets):
        if not encoding.attention_mask[index]:
            continue
        # A token's offsets leave its leading space out; it begins where the one before it ended.
        first = start if behind is None else min(start, behind)
        behind = end
        mask[index] = int(any(first < stop and end > begin for begin, stop in spans))
    return mask


def _cut(row: list[int], lengths: Lengths, side: str) -> list[int]:
    if lengths.truncation == "do_not_truncate" or lengths.max_length is None:
        return row
    if side == "right":
        return row[: lengths.max_length]
    return row[max(len(row) - lengths.max_length, 0) :]
