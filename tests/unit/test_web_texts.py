"""The texts of the console: complete in each language, and nowhere else than in the catalogues."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from babel.messages import Message
from jinja2 import nodes
from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from isabella.config.settings import load_settings
from isabella.config.vendors import known_vendors
from isabella.doctor.findings import finding
from isabella.errors import ConfigurationError
from isabella.providers.desired import Desired, desired_providers
from isabella.providers.health import headline
from isabella.providers.plan import Action, PlannedChange, ProviderState, predict_change
from isabella.providers.report import Report
from isabella.server.app import create_app
from isabella.server.readiness import Readiness
from isabella.server.runtime import Runtime
from isabella.server.static_files import STATIC_FILES
from isabella.server.web.languages import ENGLISH, GERMAN, LANGUAGES, language_of, preferred, say, speaking
from isabella.server.web.rendering import format_duration, format_time, template_environment
from isabella.system.english import english, joined, packed, unpacked
from isabella.system.redaction import remember
from isabella.turns.events import ErrorCode
from isabella.turns.stream import VendorRefusal
from isabella.turns.turn import unanswered_turn
from isabella.vendors.client import classify_answer
from tests.support import catalogues
from tests.support.sample_reports import DRIFTED, IN_SYNC

ENVIRONMENT = template_environment()
#: Of the pages, one is shown before the application is loaded: it is no template of Jinja, and in English.
TEMPLATES = sorted(set(ENVIRONMENT.list_templates(["html"])) - {"loading.html"})
TRANSLATIONS = list(catalogues.translations())
#: Values and tags, which a translation has to keep.
KEPT = re.compile(r"%\(\w+\)s|\{\w+\}|</?[a-z]+[^>]*>")
GETTEXT = {"gettext", "ngettext", "pgettext", "npgettext", "_"}
#: Names, and what a person would not translate.
NAMES = {"Isabella", "·", "—"}


# --- the catalogues ------------------------------------------------------------------------------------------------


def test_every_language_has_a_catalogue() -> None:
    """English is the text itself."""
    assert {path.stem for path in TRANSLATIONS} == LANGUAGES.keys() - {"en"}


@pytest.mark.parametrize("path", TRANSLATIONS, ids=lambda path: path.stem)
def test_a_catalogue_is_complete(path: Path) -> None:
    """It has the texts of the templates and the code, each translated, and no other; the compiled one is the same."""
    found, known = catalogues.extracted(), catalogues.read(path)
    texts = {(one.context, str(one.id)) for one in found if one.id}
    assert {(one.context, str(one.id)) for one in known if one.id} == texts, "run: python -m tests.support.catalogues"
    assert [one.id for one in known if one.id and not catalogues.is_translated(one)] == []
    assert [one.id for one in known if one.fuzzy and one.id] == []
    assert path.with_suffix(".mo").read_bytes() == catalogues.compiled(catalogues.read(path))


@pytest.mark.parametrize("path", TRANSLATIONS, ids=lambda path: path.stem)
def test_a_translation_keeps_values_and_tags(path: Path) -> None:
    """Each has what its English text has; a form for one may leave out the number. No quote ends an attribute."""
    wrong = [one.id for one in catalogues.read(path) if one.id and not _keeps(one)]
    assert wrong == []


def _keeps(message: Message) -> bool:
    ids, forms = _forms(message.id), _forms(message.string)
    wanted = Counter(KEPT.findall(ids[-1]))
    for form in forms:
        found = Counter(KEPT.findall(form))
        if found != wanted and (len(ids) == 1 or found + Counter(["%(count)s"]) != wanted):
            return False
        if '"' in re.sub(r"<[^>]*>", "", form):
            return False
    return True


def _forms(text: object) -> list[str]:
    """Return the forms for numbers; a text without them is one."""
    return (
        [text] if isinstance(text, str) else [str(form) for form in text] if isinstance(text, (list, tuple)) else []
    )


# --- no text beside them -------------------------------------------------------------------------------------------


class _Literals(HTMLParser):
    """Collects the words that a template itself has: in texts, and in attributes that people see or hear."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code += tag == "code"
        for name, value in attrs:
            if name in ("aria-label", "title", "placeholder", "alt"):
                self._note(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "code"

    def handle_data(self, data: str) -> None:
        if not self._code:
            self._note(data)

    def _note(self, text: str) -> None:
        words = [word for word in re.split(r"[\s\0]+", text) if word not in NAMES]
        if re.search(r"[A-Za-z]", " ".join(words)):
            self.found.append(" ".join(words))


def _own_html(source: str) -> str:
    """Return the HTML that a template itself has; each expression is a NUL, what is translated is left out."""
    pieces: list[str] = []
    translated = False
    tokens = iter(ENVIRONMENT.lex(source))
    for _line, kind, text in tokens:
        if kind == "data" and not translated:
            pieces.append(text)
        elif kind in ("variable_begin", "block_begin"):
            names: list[str] = []
            for _line, inner, word in tokens:
                if inner in ("variable_end", "block_end"):
                    break
                names += [word] if inner == "name" else []
            if kind == "variable_begin":
                pieces.append("\0")
            elif names[:1] == ["trans"]:
                translated = True
                pieces.append("\0")
            elif names[:1] == ["endtrans"]:
                translated = False
    return "".join(pieces)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_has_no_text_of_its_own(template: str) -> None:
    """Every word that people see or hear is marked for translation, in HTML and in expressions."""
    assert ENVIRONMENT.loader is not None
    source = ENVIRONMENT.loader.get_source(ENVIRONMENT, template)[0]
    parser = _Literals()
    # Blocks of attributes and of the path of a link are no elements.
    html = re.sub(r"{% block (?:live|body|scripts) %}.*?{% endblock %}|{% macro place.*?{% endmacro %}", "", source)
    parser.feed(_own_html(html.replace("<{{ element }}", "<div").replace("</{{ element }}", "</div")))
    parser.close()
    assert parser.found == []
    assert list(_untranslated(ENVIRONMENT.parse(source))) == []


def _untranslated(node: nodes.Node) -> Iterator[str]:
    """Yield the constants of expressions that look like words for people: with a space, or with a capital."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in GETTEXT:
        for keyword in node.kwargs:
            yield from _untranslated(keyword.value)
        return
    if isinstance(node, nodes.Const) and isinstance(node.value, str) and _is_for_people(node.value):
        yield node.value
    for child in node.iter_child_nodes():
        yield from _untranslated(child)


def _is_for_people(text: str) -> bool:
    # Names of states, classes of styles, and parts of addresses are for programs.
    names = r"[A-Z][a-z]+[A-Z]\w*|Drifted|Failed|Foreign|Escape|.*[=#&?/_].*|stored | .*"
    return bool(re.search(r"[A-Z][a-z]+|[a-z] [a-z]", text)) and not re.fullmatch(names, text)


@pytest.mark.parametrize("script", sorted(path.name for path in STATIC_FILES.glob("*.js")))
def test_a_script_has_no_text_of_its_own(script: str) -> None:
    """Its strings are names; the texts come with the page."""
    source = re.sub(r"^\s*//.*$", "", (STATIC_FILES / script).read_text(), flags=re.MULTILINE)
    strings = re.findall(r'"([^"\n]*)"|`([^`]*)`', source)
    words = [text for pair in strings for text in pair if re.match(r"[A-Z][a-z]+(?: [a-z]|$)", text)]
    assert [word for word in words if word not in ("Enter", "Escape", "Files", "HX-Retarget")] == []


# --- which language ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en"),
        ("fr;q=1.0, de;q=0.7, en;q=0.5", "de"),
        ("fr", "en"),
        ("de;q=0, en", "en"),
        ("*;q=0.5, xx" * 50, "en"),
        ("de;q=nan", "en"),
    ],
)
def test_the_browser_s_preference(header: str, expected: str) -> None:
    """The best one that there is; English without one."""
    assert preferred(header).tag == expected


def test_a_choice_comes_before_the_preference() -> None:
    """An unknown choice is none."""

    def asked(cookie: str) -> str:
        headers = [(b"accept-language", b"de"), (b"cookie", f"isabella_language={cookie}".encode())]
        return language_of(HTTPConnection({"type": "http", "headers": headers})).tag

    assert [asked("en"), asked("de"), asked("xx")] == ["en", "de", "de"]


def test_pages_and_errors_speak_it() -> None:
    """The sign-in page and a refusal, before any session."""
    with TestClient(create_app(Runtime(), _nothing), base_url="http://127.0.0.1") as client:
        for language, word in (("de", "Das hat nicht geklappt"), ("en", "This did not work")):
            page = client.get("/console/nothing", headers={"accept-language": language, "accept": "text/html"})
            assert f'<html lang="{language}"' in page.text
            assert word in page.text


async def _nothing() -> None:
    """Open no service."""


# --- how it is said ------------------------------------------------------------------------------------------------


def test_the_status_line_in_german() -> None:
    """A text of the core is a string in English, and is said in the language of the page, with its values."""
    lead = headline(Report("http://letta", "0.16.8", [DRIFTED, IN_SYNC]))
    assert str(lead.title) == "1 of 2 providers is not in order."
    with speaking(GERMAN):
        assert say(lead.title) == "1 von 2 Providern ist nicht in Ordnung."
        assert "Letta hat nicht die konfigurierten Werte" in say(lead.text)
        assert say("a reason of a vendor") == "a reason of a vendor"


def test_findings_in_german() -> None:
    """Summary, cause and remedy of a finding, with values that are texts themselves, and the reason of an unknown."""
    refused = finding(
        "vendor-rate-limited",
        provider="byok-groq",
        vendor="Groq",
        answer="slow down",
        wait=english(" It asks to wait %(seconds)s s.", seconds="2"),
    )
    unnamed = finding("agent-ignores-key", agents=("a", "b", "c", "d"), env_option="")
    unanswered = finding("vendor-dns", base_url="http://x", place="GROQ_BASE_URL", base_url_variable="GROQ_BASE_URL")
    assert refused.cause == "Groq answered 429: slow down. It asks to wait 2 s."
    assert unanswered.reason == "the host name of the base URL (http://x) is not known"
    with speaking(GERMAN):
        assert say(refused.summary) == "Groq kennt den Schlüssel, begrenzt aber die Anfragen."
        assert say(refused.cause) == "Groq hat 429 geantwortet: slow down. Er bittet um 2 s Wartezeit."
        assert say(refused.remedy.text).startswith("Warten, weniger Anfragen senden")
        assert say(unnamed.summary).startswith("Lettas Client für a, b, c und 1 weitere benutzt")
        assert say(unanswered.reason) == "Der Hostname der Basis-URL (http://x) ist nicht bekannt"


def test_a_text_stays_translatable_when_it_is_copied() -> None:
    """Reports are copied, and copies go to other processes."""
    text = finding("vendor-dns", base_url="http://x", place="p", base_url_variable="v").reason
    for copied in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert copied == text
        with speaking(GERMAN):
            assert say(copied) == "Der Hostname der Basis-URL (http://x) ist nicht bekannt"


def test_reasons_of_the_core_in_german() -> None:
    """The reasons of a provider, of readiness and of a turn, one inside of the other; a vendor's words stay."""
    groq = next(vendor for vendor in known_vendors() if vendor.name == "groq")
    desired = Desired(groq, "byok-groq", "groq", groq.base_url, SecretStr("gsk_1"), "GROQ_API_KEY (.env)")
    planned = PlannedChange(desired, None, None, ProviderState.ABSENT, Action.CREATE, "not in Letta yet")
    answer = classify_answer(401, {"error": {"message": "Wrong API Key"}})
    refused = predict_change(planned, answer, answer)
    error = unanswered_turn([VendorRefusal(ErrorCode.KEY_REFUSED, "401: Wrong API Key", 401)])
    entry = replace(DRIFTED, reason=english("Letta holds another key"))
    readiness = Readiness(report=Report("http://letta", "0.16.8", [entry]))
    with speaking(GERMAN):
        assert say(refused.reason) == (
            "Groq lehnt den konfigurierten Schlüssel ab (401: Wrong API Key); nichts wird angelegt, "
            "aber der Anbieter lehnt auch ihn ab"
        )
        assert say(refused.remedy or "").startswith("GROQ_API_KEY (.env) hat einen abgelehnten Schlüssel")
        assert say(error.message) == "Der Anbieter antwortet nicht: 401: Wrong API Key"
        assert say(error.remedy or "").startswith("Den Schlüssel ersetzen")
        assert [say(reason) for reason in readiness.reasons] == ["cerebras: Letta hat einen anderen Schlüssel."]


@pytest.mark.parametrize(
    ("env", "toml", "reason"),
    [
        (
            "ISABELLA_REFRESH_AT=25:00",
            "",
            "ISABELLA_REFRESH_AT ({env}, Zeile 1): es muss eine Ortszeit wie 03:30 sein, oder leer für nie",
        ),
        ("\nGROQ_API_KEY", "", "{env}, Zeile 2: Nach GROQ_API_KEY steht kein „=“."),
        (
            "",
            '[[providers]]\nname = "a/b"\nbase_url = "http://x"\n',
            "{toml}, [[providers]] in Zeile 1: name: ein Name darf keinen Schrägstrich haben: "
            "Modelle heißen NAME/MODELL (Fakt P10).",
        ),
        ("", "x = 1", "{toml}, Zeile 1: unbekannter Eintrag 'x'."),
        ("ISABELLA_CONFIG_FILE=/", "", "/: kann nicht gelesen werden: es ist ein Verzeichnis, keine Datei."),
    ],
)
def test_why_a_configuration_is_refused_in_german(tmp_path: Path, env: str, toml: str, reason: str) -> None:
    """A page shows it as a notice when a file has been changed."""
    files = {"env": tmp_path / ".env", "toml": tmp_path / "isabella.toml"}
    files["env"].write_text(env or f"ISABELLA_CONFIG_FILE={files['toml']}")
    files["toml"].write_text(toml)
    with pytest.raises(ConfigurationError) as refused:
        desired_providers(load_settings(files["env"], {}))
    with speaking(GERMAN):
        assert say(refused.value.what) == reason.format(**files)


def test_a_text_of_another_process_stays_translatable() -> None:
    """The program that asks the keyring prints JSON; what it quotes is masked."""
    remember("gsk_unpacked000000000000001")
    inner = english("the desktop's keyring")
    text = english("%(keyring)s failed (%(why)s)", keyring=inner, why="gsk_unpacked000000000000001")
    came = unpacked(json.loads(json.dumps(packed(text))))
    assert came == "the desktop's keyring failed (gsk_…0001)"
    with speaking(GERMAN):
        assert say(came) == "der Schlüsselbund des Desktops ist gescheitert (gsk_…0001)"


def test_numbers_and_times() -> None:
    """Separators, fractions and dates follow the language; values inside of texts, too."""
    text = english("%(name)s has %(count)s characters; a file may have %(most)s.", name="a", count=120000, most=5)
    both = joined([text, english("Saved.")])
    assert both == "a has 120,000 characters; a file may have 5. Saved."
    with speaking(ENGLISH):
        assert format_duration(1.44) == "1.4 s"
        assert "27 Nov, 08:00" in format_time("2026-11-27T08:00:00+00:00")
    with speaking(GERMAN):
        assert say(both) == "a hat 120.000 Zeichen; erlaubt sind 5. Gespeichert."
        assert format_duration(1.44) == "1,4 s"
        assert "27.11., 08:00" in format_time("2026-11-27T08:00:00+00:00")


def test_values_are_escaped_and_texts_are_html() -> None:
    """Whatever a value contains is text; the tags of a text, and a number beside the form that it decides, stay."""
    template = ENVIRONMENT.from_string(
        "{% trans count=n, query=q %}{{ count }} result for “<bdi>{{ query }}</bdi>”.{% pluralize %}"
        "{{ count }} results for “<bdi>{{ query }}</bdi>”.{% endtrans %} {{ _('Edit') }}"
        "{{ _('Edit %(label)s', label=q) }} {{ pgettext('the limit itself', 'Of') }}"
    )
    with speaking(GERMAN):
        shown = template.render(n=2, q="<b> %(x)s 5%")
    label = "&lt;b&gt; %(x)s 5%"
    assert shown == f"2 Treffer für „<bdi>{label}</bdi>“. Bearbeiten{label} bearbeiten Von"
