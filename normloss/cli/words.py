"""A command line that Hydra would refuse in its parsers' words, refused in ours: which word, and what is wrong."""

import re
from typing import NoReturn

import yaml

from normloss.config import CONFIGS
from normloss.errors import UserError
from normloss.sweeps.hydra_internals import arguments_parser

GROUPS = ("dataset", "model", "reg", "recipe")
PAIRS = {"(": ")", "[": "]", "{": "}"}
UNQUOTED = re.compile(r"[\w\s/\-\\+.$%*@?|:,(){}\[\]]", re.ASCII)  # Hydra's grammar; ${...} brings the braces
FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\(")  # a sweep as it stands
NO_NAME = re.compile(r"null|true|false|nan|[-+]?inf|[-+.]?\d[\d_.e+-]*|[\[{].*", re.IGNORECASE)  # of a group's file
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
LINK = re.compile(r"\s*See https://\S+ for details")


def check(arguments: list[str]) -> None:
    """Raises UserError for options that are none, exclude each other or stand between words, and for empty keys."""
    parser = arguments_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # ArgumentParser's prints 12 lines and leaves
    options, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-"):
            raise UserError(f"{word}: no such option; python train.py --help")
    if rest:
        option = arguments[arguments.index(rest[0]) - 1]
        raise UserError(f"{option}: options stand before all key=value, got {rest[0]} behind it")
    for word in options.overrides:
        _check_word(word)
    if options.experimental_rerun:
        raise UserError("--experimental-rerun: is not taken, since it reads a pickle, which can run anything")
    modes = {"-m": options.multirun, "--cfg": options.cfg, "--info": options.info, "--run": options.run}
    given = [name for name, value in modes.items() if value]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)}: only one of them; --cfg job shows the config of one run,"
            " python scripts/plan.py EXPERIMENT the runs of a sweep"
        )


def _check_word(word: str) -> None:
    if CONTROL.search(word):
        raise UserError(f"{word!a}: must be on one line, without control characters")
    key, _, value = word.partition("=")
    if not key.strip("+~"):
        raise UserError(f"{word}: must be key=value")
    name = key.lstrip("+~").partition("@")[0]
    group = name in (*GROUPS, "experiment", "debug") or name.startswith("hydra/")
    if group and NO_NAME.fullmatch(value):
        raise UserError(f"{key}: must be a name, got {value}")
    if digits := re.search(r"\d{1000,}", value):
        raise UserError(f"{key}: a number may have 1000 digits, got {len(digits[0])}")


def asks_for_many(arguments: list[str]) -> bool:
    """Whether a command line is a sweep, an experiment, a queue or a comparison."""
    many = ("experiment=", "queue=", "compare=")
    return bool({"-m", "--multirun"} & {*arguments}) or any(word.startswith(many) for word in arguments)


def for_each_member(arguments: list[str]) -> list[str]:
    """model.dropout=0.3 beside a sweep over model as a sweep of one value: Hydra gives an override that is not swept to
    the default model first, which may not have the key."""
    swept = _swept_groups(arguments)
    return [_as_sweep(word, swept) if "=" in word else word for word in arguments]


def _as_sweep(word: str, swept: set[str]) -> str:
    key, _, value = word.partition("=")
    key = key if key.startswith("++") else key.removeprefix("+")  # no member needs the +, none would take it
    if key.partition(".")[0] not in swept or "." not in key or not value or _has_comma(value) or FUNCTION.match(value):
        return word
    return f"{key}=choice({value})"


def _swept_groups(arguments: list[str]) -> set[str]:
    """The groups of which the command line or its experiment names several."""
    given = {key: value for key, _, value in (word.partition("=") for word in arguments)}
    experiment = CONFIGS / "experiment" / f"{given.get('experiment')}.yaml"
    hydra = (yaml.safe_load(experiment.read_text()) if experiment.is_file() else {}).get("hydra", {})
    values = {**hydra.get("sweeper", {}).get("params", {}), **given}
    return {key for key in GROUPS if _has_comma(str(values.get(key, "")))}


def _has_comma(value: str) -> bool:
    """Whether a comma stands outside brackets and quotes: values of a sweep."""
    depth, quote = 0, ""
    for char in value:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "," and not depth:
            return True
        else:
            depth += (char in PAIRS) - (char in PAIRS.values())
    return False


def explain(word: str, reason: str) -> str:
    """What is wrong with an override that cannot be parsed; reason: Hydra's words, where it is none of what we know."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: must be key=value"
    if not re.fullmatch(r"[+~]{0,2}[\w./@:$\-]+", key):
        return f"{word}: {key!r} is no key"
    if fault := _unbalanced(value) or _unquoted(key, value):
        return f"{word}: {fault}"
    reason = LINK.sub("", " ".join(reason.split())).removeprefix(f"Error parsing override '{word}'").strip()
    return f"{word}: cannot be read ({reason})"


def _unbalanced(value: str) -> str | None:
    """A bracket or quote that is not closed, or closes nothing."""
    opened: list[str] = []
    quote, escaped = "", False
    for char in value:
        if quote:
            quote = "" if char == quote and not escaped else quote
        elif char in "\"'" and not escaped:
            quote = char
        elif char in PAIRS and not escaped:
            opened.append(char)
        elif char in PAIRS.values() and not escaped:
            if not opened or PAIRS[opened[-1]] != char:
                return f"{char} closes {opened[-1] if opened else 'nothing'}"
            opened.pop()
        escaped = char == "\\" and not escaped
    if quote:
        return f"the quote {quote} is not closed"
    return f"{opened[-1]} is not closed" if opened else None


def _unquoted(key: str, value: str) -> str | None:
    """A character that a value can hold between quotes only."""
    if value[:1] in ("'", '"'):
        return None
    odd = next((char for char in value if not UNQUOTED.match(char)), None)
    if odd is None:
        return None
    separate = "give each key=value as a word of its own, or " if odd == "=" else ""
    quoted = f"""'{key}="{value}"'""" if not {"'", '"'} & set(value) else f"{key}=..."
    return f"{odd} must be quoted; {separate}write {quoted}"


def _refuse(message: str) -> NoReturn:
    option, _, reason = message.removeprefix("argument ").partition(": ")
    if not reason:
        raise UserError(message)
    raise UserError(f"{option.split('/')[0]}: {reason}; python train.py --help")
