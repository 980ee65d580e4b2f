"""What to type in place of a line that click refuses: it imports nothing else, so as to answer at once."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence

import click

_END = "--"
_BEAM = "beam_options"
_OPTION = re.compile(r"--?[a-zA-Z]")
_CONFIGS = (".yaml", ".yml")


def remedy(error: click.ClickException, typed: Sequence[str]) -> str | None:
    """One line on what to type; None where click has said it all.

    Args:
        error: What click says.
        typed: The words behind the name of the program.
    """
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return None
    context = error.ctx
    if isinstance(context.command, click.Group):
        if typed and typed[0].endswith(_CONFIGS):
            line = shlex.join([context.command_path, "build", *typed])
            return f"A command comes first, such as build: {line}"
        return None
    words = list(typed[1:] if context.parent else typed)
    if set(words) & set(context.help_option_names):
        return None
    if isinstance(error, click.NoSuchOption):
        return _behind_end(context, words)
    if isinstance(error, click.BadParameter) and isinstance(error.param, click.Option):
        return _swallowed(context, words, error.param) or _described(context, error.param)
    return None


def _behind_end(context: click.Context, words: Sequence[str]) -> str | None:
    """The line in which the options that the command does not know are Beam's."""
    if all(parameter.name != _BEAM for parameter in context.command.params):
        return None
    end = words.index(_END) if _END in words else len(words)
    own, beam = list(words[:end]), list(words[end + 1 :])
    while isinstance(refused := _refusal(context, own), click.NoSuchOption):
        place = next(i for i, word in enumerate(own) if word.startswith(refused.option_name))
        option = own[place]
        if not _OPTION.match(option):
            return None
        named = f"--{option.lstrip('-')}"
        value = own[place + 1 : place + 2]
        without = own[:place] + own[place + 2 :]
        takes = "=" not in option and value and not value[0].startswith("-")
        # A flag of Beam has no value: the word behind it may be an argument.
        if takes and not _misses_argument(context, without):
            own = without
            beam.append(f"{named}={value[0]}")
        else:
            own.pop(place)
            beam.append(named)
    line = shlex.join([*context.command_path.split(), *own, _END, *beam])
    return f"Options of Beam go after {_END}: {line}"


def _swallowed(context: click.Context, words: Sequence[str], option: click.Option) -> str | None:
    """The line in which the word behind an option is the argument that is missing without it."""
    for place, (word, value) in enumerate(itertools.pairwise(words)):
        if word not in option.opts:
            continue
        before, after = words[:place], words[place + 2 :]
        if _misses_argument(context, [*before, *after]):
            metavar = option.make_metavar(context)
            needs_value = option.to_info_dict()["flag_value"] is None
            behind = [word, metavar] if needs_value else [word]
            line = shlex.join([*context.command_path.split(), *before, value, *after, *behind])
            return f"{word} took {value} as its {metavar}; write {line}"
    return None


def _described(context: click.Context, option: click.Option) -> str:
    metavar = option.make_metavar(context)
    return f"{option.opts[-1]} {metavar}: {option.help}"


def _misses_argument(context: click.Context, words: Sequence[str]) -> bool:
    error = _refusal(context, words)
    return isinstance(error, click.MissingParameter) and isinstance(error.param, click.Argument)


def _refusal(context: click.Context, words: Sequence[str]) -> click.UsageError | None:
    """What click says of other words for the same command."""
    try:
        context.command.make_context(context.info_name, list(words), parent=context.parent)
    except click.UsageError as error:
        return error
    return None
