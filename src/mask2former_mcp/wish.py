"""What a user's own words say about AutoML: on, off, or nothing.

Words that could mean either are not guessed at: `read` answers None, and `mentioned` tells that they were about AutoML.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

Policy = Literal["auto", "off"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user's words ask for, and the words that say it."""

    policy: Policy
    words: str


_NAME = (
    r"(?:automl|hpo|(?:automatic |auto )?hyperparameters?"
    r"(?: (?:search(?:es|ing)?|optimi[sz]ation|tuning|sweeps?|study))?"
    r"|(?:automatic )?parameter (?:search|sweeps?)|hp (?:search|tuning|sweeps?))"
    r"(?: (?:hpo|search(?:es)?|tuning|policy|routing|runs?|stuff|thing|step|feature|mode))?"
)
_TOPIC = rf"(?:(?:the|any|all|its|this|that|an?|our|your|more|such|whole|entire|automatic|of) ){{0,4}}\b{_NAME}\b"
# "AutoML and HPO", "HPO or any hyperparameter search"
_TOPIC = rf"{_TOPIC}(?:(?: and| or| nor|/|,) {_TOPIC}){{0,3}}"
_USE = (
    r"(?:us(?:e|ing)|run(?:ning)?|do(?:ing)?|perform(?:ing)?|start(?:ing)?|launch(?:ing)?|enabl(?:e|ing)|activat(?:e|ing)"
    r"|turn(?:ing)? on|switch(?:ing)? on|want|need|apply(?:ing)?|try(?:ing)?|bother with|bother about|go through"
    r"|includ(?:e|ing)"
    r"|trigger(?:ing)?|invok(?:e|ing)|like|wish for|go for|spend time on|waste time on|rely on|kick off"
    r"|route (?:this |it )?(?:through|to))"
)
_OFF = (
    r"(?:turn(?:ing|ed)? off|switch(?:ing|ed)? off|shut(?:ting)? (?:off|down)|disabl(?:e|ing)"
    r"|deactivat(?:e|ing)|skip(?:ping)?|bypass(?:ing)?|omit(?:ting)?|avoid(?:ing)?|drop(?:ping)?"
    r"|leav(?:e|ing) (?:out|off)|forgo(?:ing)?|opt(?:ing)? out of|ditch(?:ing)?|scrap(?:ping)?|forget(?: about)?"
    r"|hold(?:ing)? off on"
    r"|(?<!early )stop(?:ping)?|exclud(?:e|ing)|suppress(?:ing)?|get(?:ting)? rid of|remov(?:e|ing)|cut(?:ting)? out"
    r"|refrain from)"
    rf"(?: {_USE})?"
)
# A negation, and the few words that may stand between it and what it negates. "don't forget to" is none.
_NEGATION = (
    r"(?:do(?:es)?n['o]?t|do(?:es)? not|did ?n['o]?t|did not|never|not|without|nor"
    r"|no (?:need|reason|wish|point|intention)"
    r"|need ?n['o]?t|should ?n['o]?t|must ?n['o]?t|wo ?n['o]?t|ca ?n['o]?t|cannot|would ?n['o]?t|rather than|instead of"
    r"|(?:isn't|is not|ain't) (?:necessary|needed)|against|more than|under no circumstances|on no account|by no means"
    r"|neither|no more|stop|avoid|nobody(?: (?:said|asked|told))?|(?:mistake|wrong|unwise|bad idea) to)"
)
_BETWEEN = (
    r"(?:(?:to|for|in|of|you|please|want|wish|need|even|just|simply|ever|have|me|us|it|going|i|we|like|would|really|be|any|a|the"
    r"|bother|try|and|yet|mean|intend|plan|go|think|should|that|only|actually|dare|say(?:ing)?|said|ask(?:ing|ed)?|told"
    r"|suggest(?:ing|ed)?|under any circumstances) )*"
)
# "do not skip, disable or turn off": one negation of all these verbs
_NEGATED = rf"(?P<negation>\b{_NEGATION} {_BETWEEN}(?:(?:{_OFF}, ){{0,3}}{_OFF},? n?or )?)?"
# The topic itself and no part of it ("AutoML logging"): no noun of these follows; and no "is a bad idea".
_PART = (
    r"(?:(?:final|verbose|debug|detailed|internal|extra|early|parallel|automatic|search|tuning) ){0,2}"
    r"(?:log(?:s|ger)?|reports?|summar(?:y|ies)|budgets?|metrics?|results?|outputs?|files?|folders?|artifacts?|plots?|charts?"
    r"|checkpoints?|cach(?:e|es)|trials?|stud(?:y|ies)|pruners?|schedulers?|samplers?|controllers?|brain|workers?|rungs?"
    r"|settings?|options?|config|parameters?|algorithms?|arguments?|flags?|ranges?|space|limits?|caps?|timeouts?|deadlines?"
    r"|warnings?|messages?|notes?|callbacks?|dashboards?|progress|history|seeds?|parallelism|backends?|tools?|docs|support"
    r"|features?|errors?|jobs?|found|available|based|related|hpo|search(?:es)?|optimi[sz]e|sweeps?|policy|routing|runs"
    r"|stuff|things?|steps?|modes?"
    r"|(?!(?:during|using|training|being|considering|assuming|regarding|seeing|going|owing)\b)\w+ing|\w{2,}(?:tion|ment)s?"
    r"|(?:is|are|was|were|would)(?! (?:needed|necessary|wanted|required)))\b"
)
_WHOLE = rf"(?!'|-\w|[ -]{_PART})"
# "disable wandb, AutoML may run": the topic begins a sentence of its own
_NO_SUBJECT = r"(?! (?:can|may|might|will|should|must|do|does|has|goes|stays|gets|works|looks|seems|helps)\b)"
_LINK = (
    r"(?:is|are|be|being|to be|stays?|remains?|set|set to|should|must|can|may|shall|will|to|please|=|:|,|->|just"
    r"|completely|bitte|ist|soll|sein)"
)
_PLAIN = (
    r"(?:plain|vanilla|direct)(?: (?:old|single|simple|direct|model|mask2former|supervised|normal))*"
    r" (?:(?:training|fine[ -]?tun(?:ing|e))(?: runs?)?|train run|run"
    r"|train(?= ?(?:$|[,)]|job|please|only|for|with|on my|on this)))\b"
    r"(?! (?:is|was|does|do|did|would|wo|will|should|must)(?:n't| not)\b)"
)
_STATE_OFF = (
    r"(?:off|disabled|deactivated|turned off|switched off|skipped|out|unnecessary|false|none|0"
    r"|aus|ausgeschaltet|abgeschaltet|deaktiviert)\b"
)

_STATE_ON = r"(?:on|enabled|activated|auto|true|yes)\b"
# "don't train without AutoML"
_WORK = r"(?:run|train|go|do|start|proceed|continue|work)(?: (?:it|this|anything|mask2former|the model))?"
# "..., no wait, keep it on", "AutoML is off, right? Turn it on": `it` is AutoML if what was said
# just before was about that
_BACK = (
    r"(?P<back>(?:^ ?|\b(?:no|nope|nah|wait|actually|sorry)(?:,? (?:no|wait|actually|sorry)){0,4},? )"
    r"(?:please |just |let's )?)"
)
_NOT_LATER = r"(?! (?:after|when|once|if|as soon)\b)"
# "wandb and AutoML", "wandb, HPO": other things that one verb switches off as well
_OTHERS = r"(?:(?:the )?[\w-]+(?:, (?:and |or )?| and | or )){1,3}"

# Tried in this order; a later pattern does not read words that an earlier one has read. True: says off unless negated.
_PATTERNS: tuple[tuple[str, bool], ...] = (
    (rf"{_NEGATED}\b{_OFF} {_TOPIC}{_WHOLE}", True),
    (rf"{_NEGATED}\b{_OFF} {_OTHERS}{_TOPIC}{_WHOLE}{_NO_SUBJECT}(?! ?(?:{_LINK} ?)*{_STATE_ON})(?! with\b)", True),
    (rf"\b(?:{_NEGATION} {_BETWEEN}|without )(?:tun|search|optimi[sz]|sweep)(?:e|ing)? (?:over )?{_TOPIC}", True),
    (r"\b(?:no|without|without any) (?:(?:auto(?:matic)? ?)?tuning|sweeps?|search(?= ?(?:$|,|please)))\b", True),
    (rf"\b{_TOPIC} ?[:=] ?(?:no|never)(?= ?(?:$|,))", True),
    (rf"\b{_TOPIC},? no,? thank(?:s| you)\b", True),
    (
        rf"{_NEGATED}\b(?:turn|switch|shut|leave|keep|set|put|take|make|with|have|want)(?:ing|ed|s)? {_TOPIC}"
        rf" (?:{_LINK} ?)*{_STATE_OFF}",
        True,
    ),
    (
        rf"{_NEGATED}\b(?:turn|switch|leave|keep|set|put)(?:ing|ed|s)? {_TOPIC} (?:{_LINK} ?)*"
        rf"{_STATE_ON}",
        False,
    ),
    (
        rf"\b{_NEGATION} {_BETWEEN}(?:{_USE}|have|having|wish|require) {_TOPIC}"
        rf"(?:{_WHOLE}|(?= (?:turned on|switched on|enabled)\b))",
        True,
    ),
    (
        rf"\b{_TOPIC} ?(?:{_LINK} ?)*(?P<negation>(?:should|must|may|can)(?:n't| not) (?:be )?|cannot be "
        rf"|never (?:be )?)(?:{_LINK} ?)*{_STATE_OFF}",
        True,
    ),
    (rf"{_NEGATED}\b{_TOPIC} ?(?:{_LINK} ?)*{_STATE_OFF}(?! (?:is|was|would be)(?:n't| not| wrong))", True),
    (rf"\b{_TOPIC} (?:(?:is|are)(?:n't| not)|not) (?:needed|wanted|required|necessary|desired)", True),
    (rf"\b{_TOPIC} ?(?:should|must)(?:n't| not) (?:be )?(?:used|run|started|enabled|on)\b", True),
    (rf"\b(?P<negation>(?:not|never) |{_NEGATION} {_BETWEEN}{_WORK} )without {_TOPIC}", True),
    (
        r"(?:\bno|\bwithout|\bw/o|\bminus|\bsans|\bzero|\bnot(?: with)?|\bno need (?:for|of)|\bexcept|\binstead of"
        rf"|\brather than) {_TOPIC}{_WHOLE}",
        True,
    ),
    (rf"\b{_NAME}[ -]free\b", True),
    (rf"{_NEGATED}(?:\b(?:do|run|use|start|a) ){{0,2}}\b{_PLAIN}", True),
    (rf"{_BACK}(?:keep|leave|turn|switch|put|have) it (?:back )?(?:on|enabled)\b{_NOT_LATER}", False),
    (rf"{_BACK}(?:keep|leave|turn|switch|put|have) it (?:back )?(?:off|disabled)\b{_NOT_LATER}", True),
    (rf"(?P<negation>\bnicht )?\b(?:ohne|keine?[nmrs]?|nicht mit) (?:jede[ns]? )?{_TOPIC}", True),  # German
    (
        rf"{_NEGATED}\b(?:{_USE}|(?:{_WORK} )?(?:with|using|mit|via|through)|keep|tune|search|optimi[sz]e|sweep)"
        rf" {_TOPIC}{_WHOLE}",
        False,
    ),
    (rf"\b{_TOPIC} ?(?:{_LINK} ?)*{_STATE_ON}(?! (?:my|the|this|our|a|s3|data))", False),
)
_HYPOTHETICAL = (
    r"\b(?:should (?:i|we)|(?:can|could|may) i|what (?:if|happens|does|is)|whether|why|would it help|does it help"
    r"|how (?:do|can|would)(?: i| we)?)\b[^,:]*$|^(?:and |so )?(?:is|are|does)\b"
)
_REPORTED = r"\b(?:was|were|did|had|last (?:run|time|job|training)|earlier|previous(?:ly)?)\b[^,:]*$"
_CLAUSE_ENDS = r"([.;!?\n]+(?=\s|$)|\bbut\b|—| - )"
# What may follow a question: "disable AutoML? no, keep it on". "No HPO" is no answer but a wish of its own.
_ANSWER = (
    r" *(?:(?P<no>no|nope|nah|never|not at all|(?:please )?don't|i (?:don't|do not) think so|(?:i'd )?rather not"
    r"|(?:of course|certainly|better) not|(?:please )?keep it(?! off))|yes|yeah|yep|sure)\b"
    r"(?= ?(?:$|[,:]|please|thank|wait|way\b|keep|leave|use\b|it\b|turn|do\b|i\b|we\b))"
)


@cache
def _compiled() -> tuple[tuple[re.Pattern[str], bool], ...]:
    """On first use: compiling takes longer than a server may take to start."""
    return tuple((re.compile(pattern), says_off) for pattern, says_off in _PATTERNS)


def read(text: str) -> Wish | None:
    """What the words ask for; None when they say nothing about AutoML. What is said last counts."""
    found: list[tuple[int, Wish]] = []
    offset, before = 0, ""
    clauses = re.split(_CLAUSE_ENDS, _normalised(text))  # clause, its end, clause, its end, ..., clause
    for clause, end, following in zip(clauses[::2], [*clauses[1::2], ""], [*clauses[2::2], ""], strict=True):
        answer = re.match(_ANSWER, following) if "?" in end else None
        wishes = list(_of_clause(clause, before, is_real=answer is not None))
        if answer is not None and re.fullmatch(rf"(?:and |so )?{_TOPIC}", clause.strip()):
            wishes.append((0, Wish("auto", clause.strip())))
        if answer is not None and answer["no"]:
            wishes = [(start, _refused(wish, following)) for start, wish in wishes]
        found += [(offset + start, wish) for start, wish in wishes]
        offset, before = offset + len(clause) + len(end), clause
    return max(found, key=lambda item: item[0])[1] if found else None


def mentioned(text: str) -> str | None:
    """The name under which the words speak of a search at all, in whatever language; None when they do not."""
    names = rf"\b(?:automl|hpo|hyperparameter (?:search|optimi[sz]ation|tuning|sweep)|{_PLAIN})\b"
    found = re.search(names, _normalised(text))
    return found.group() if found else None


def _refused(wish: Wish, answer: str) -> Wish:
    """A question that the text itself answers with no. "Does it use AutoML? No, please use it" is no refusal."""
    if wish.policy == "off":
        return Wish("auto", f"{wish.words}? no")
    return wish if re.search(r"\b(?:use|keep|run) it\b(?! off)|\bit on\b", answer) else Wish("off", f"{wish.words}? no")


def _of_clause(clause: str, before: str, *, is_real: bool) -> Iterator[tuple[int, Wish]]:
    """(position, wish) for each place that a pattern reads; no place is read twice.

    `before`: the clause before it. `is_real`: also "should I ...", because an answer follows.
    """
    taken: list[tuple[int, int]] = []
    for pattern, says_off in _compiled():
        for match in pattern.finditer(clause):
            start, end = match.span()
            if any(start < b and a < end for a, b in taken):
                continue
            groups = match.groupdict()
            if groups.get("back") is not None and not re.search(_NAME, before + clause[:start]):
                continue
            taken.append((start, end))
            so_far = clause[:start]
            if re.search(_REPORTED, so_far) or (not is_real and re.search(_HYPOTHETICAL, so_far)):
                continue
            negated = bool(groups.get("negation"))
            yield start, Wish("off" if says_off is not negated else "auto", match.group().strip(" ,"))


def _normalised(text: str) -> str:
    """Lower case, one kind of apostrophe and space, one spelling of the topic's names; without paths."""
    text = text[:20_000].lower().replace("\u2019", "'").replace("\u2018", "'").replace("`", "").replace('"', "")
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", text)
    text = re.sub(r"(?<!\n)\n(?!\s*(?:\n|[-*\u2022]|\d+[.)]))", " ", text)  # a wrapped line goes on
    text = re.sub(r" *\(", ", ", text)
    text = re.sub(r"[*)\[\]{}]+", " ", text)
    text = re.sub(r"\S+", lambda word: "" if _is_path(word[0]) else word[0].replace("_", " "), text)
    text = re.sub(r"\b(no|non)-(?=auto|hpo|hyper)", "no ", text)
    text = re.sub(r"-{1,2}(?=no[- ]|automl|hpo)", " ", text)
    text = re.sub(r"\bauto[ -]?ml\b", "automl", text)
    text = re.sub(r"\bautoml-(?=policy|enabled)", "automl ", text)
    text = re.sub(r"\bhyper[ -]?param(?:eter)?(s?)\b", r"hyperparameter\1", text)
    text = re.sub(r"\bhyperparameter-?(?:suche|optimierung)\b", "hyperparameter search", text)
    text = re.sub(r"(?<=[a-z])-(?=search|tuning|optimi|sweep)", " ", text)
    text = re.sub(r" *(?:[=-]>|\u2192) *", " : ", text)
    text = re.sub(r" *(=|:) *", r" \1 ", text)
    text = re.sub(r"[ \t\r\f\v]+", " ", text).strip()
    # the metadata's own key: what follows it is its value
    return re.sub(r"\bautoml enabled(?= (?:[=:]|(?:is|to|should|must|false|true|no|off)\b))", "automl", text)


def _is_path(word: str) -> bool:
    """A folder called no-hpo asks for nothing: paths and addresses are no words."""
    return word.startswith(("/", "~/", "./", "../")) or "=/" in word or "://" in word or word.count("/") > 1
