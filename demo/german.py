"""Simple German sentences with their English translation: the foreign language of the small world.

A few hundred words are combined by grammatical rules: articles and adjectives agree with gender and
case, the verb is second in a main clause and last in a subordinate one. Every sentence has exactly
one English translation, so that a translation is either correct or wrong. fastText recognises the
language; NLLB calls it ``deu_Latn``.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Phrase:
    """A sentence in German and in English, both with a full stop."""

    german: str
    english: str


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of ``German = English``, separated by semicolons and line breaks."""
    entries = (entry.split("=") for entry in text.replace("\n", ";").split(";") if entry.strip())
    return tuple((german.strip(), english.strip()) for german, english in entries)


def _nouns(masculine: str, feminine: str, neuter: str) -> tuple[tuple[str, str, str], ...]:
    groups = (("m", masculine), ("f", feminine), ("n", neuter))
    return tuple((gender, *pair) for gender, text in groups for pair in _pairs(text))


def _verbs(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple((*german.split(", "), *english.split(", ")) for german, english in _pairs(text))


# Used only as subjects, because nouns like Nachbar change in other cases.
SUBJECTS = _nouns(
    """Lehrer = teacher; Bäcker = baker; Arzt = doctor; Nachbar = neighbour; Bruder = brother; Vater = father
    Gärtner = gardener; Fahrer = driver; Koch = cook; Maler = painter; Student = student; Junge = boy
    Onkel = uncle; Mann = man; Bauer = farmer; König = king; Dichter = poet; Gast = guest; Hund = dog
    Vogel = bird; Fuchs = fox; Bär = bear; Affe = monkey""",
    """Mutter = mother; Schwester = sister; Frau = woman; Tante = aunt; Großmutter = grandmother
    Tochter = daughter; Königin = queen; Sängerin = singer; Freundin = friend; Richterin = judge
    Katze = cat; Kuh = cow; Ente = duck; Maus = mouse; Ziege = goat""",
    "Mädchen = girl; Kind = child; Baby = baby; Pferd = horse; Schaf = sheep; Schwein = pig",
)
OBJECTS = _nouns(
    """Apfel = apple; Brief = letter; Kuchen = cake; Stuhl = chair; Tisch = table; Schlüssel = key
    Teppich = carpet; Mantel = coat; Hut = hat; Korb = basket; Ring = ring; Löffel = spoon; Ball = ball
    Koffer = suitcase; Spiegel = mirror; Käse = cheese; Stein = stone; Schirm = umbrella; Knopf = button""",
    """Lampe = lamp; Zeitung = newspaper; Tasse = cup; Uhr = clock; Blume = flower; Birne = pear; Karte = map
    Flasche = bottle; Tasche = bag; Gitarre = guitar; Decke = blanket; Kerze = candle
    Suppe = soup; Münze = coin; Jacke = jacket; Glocke = bell; Feder = feather""",
    """Buch = book; Haus = house; Bild = picture; Fahrrad = bicycle; Messer = knife; Glas = glass
    Hemd = shirt; Boot = boat; Ei = egg; Kleid = dress; Auto = car; Radio = radio; Spiel = game; Seil = rope
    Fass = barrel""",
)
# Adjectives of subjects (MOODS) and of objects.
MOODS = _pairs(
    """alt = old; jung = young; klein = small; groß = big; freundlich = friendly; glücklich = happy
    klug = clever; höflich = polite; hungrig = hungry; stolz = proud; still = quiet; lustig = funny
    stark = strong"""
)
ADJECTIVES = _pairs(
    """alt = old; neu = new; rot = red; blau = blue; grün = green; weiß = white; schwarz = black
    braun = brown; klein = small; groß = big; schön = beautiful; schwer = heavy; lang = long; kurz = short
    rund = round; warm = warm; kalt = cold; gelb = yellow; schmutzig = dirty; seltsam = strange
    golden = golden; billig = cheap; hübsch = pretty; fremd = foreign; dünn = thin"""
)
# Third person singular and first person plural, in both languages.
TRANSITIVE = _verbs(
    """kauft, kaufen = buys, buy; verkauft, verkaufen = sells, sell
    sucht, suchen = looks for, look for; findet, finden = finds, find
    malt, malen = paints, paint; trägt, tragen = carries, carry; bringt, bringen = brings, bring
    holt, holen = fetches, fetch; sieht, sehen = sees, see; braucht, brauchen = needs, need
    zeigt, zeigen = shows, show; nimmt, nehmen = takes, take; verliert, verlieren = loses, lose
    repariert, reparieren = repairs, repair; putzt, putzen = cleans, clean
    vergisst, vergessen = forgets, forget; versteckt, verstecken = hides, hide
    öffnet, öffnen = opens, open; bewacht, bewachen = guards, guard
    zeichnet, zeichnen = draws, draw"""
)
INTRANSITIVE = _verbs(
    """schläft, schlafen = sleeps, sleep; wartet, warten = waits, wait; singt, singen = sings, sing
    arbeitet, arbeiten = works, work; sitzt, sitzen = sits, sit; spielt, spielen = plays, play
    lacht, lachen = laughs, laugh; tanzt, tanzen = dances, dance; steht, stehen = stands, stand
    träumt, träumen = dreams, dream; wohnt, wohnen = lives, live; isst, essen = eats, eat
    weint, weinen = cries, cry; schweigt, schweigen = keeps silent, keep silent"""
)
PLACES = _pairs(
    """im Garten = in the garden; in der Küche = in the kitchen; auf dem Markt = at the market
    am Fluss = by the river; vor dem Rathaus = in front of the town hall
    hinter der Kirche = behind the church; im Wald = in the forest; im Park = in the park
    am Bahnhof = at the station; unter dem Baum = under the tree
    auf der Brücke = on the bridge; neben dem Brunnen = next to the fountain; im Keller = in the cellar
    in der Stadt = in the town; am Strand = on the beach; auf dem Berg = on the mountain
    im Museum = in the museum; in der Bibliothek = in the library; auf dem Dach = on the roof
    hinter dem Theater = behind the theatre; im Hafen = in the harbour; in der Werkstatt = in the workshop
    auf der Wiese = in the meadow; vor der Mühle = in front of the mill; neben der Tür = next to the door
    am Fenster = at the window; auf der Treppe = on the stairs; im Turm = in the tower"""
)
TIMES = _pairs(
    """am Morgen = in the morning; am Abend = in the evening; heute = today; morgen = tomorrow; jetzt = now
    jeden Tag = every day; am Montag = on Monday; am Freitag = on Friday; am Sonntag = on Sunday
    im Sommer = in summer; im Winter = in winter; im Herbst = in autumn; nach der Arbeit = after work
    nach dem Essen = after the meal; um acht Uhr = at eight o'clock; in der Nacht = at night
    vor dem Frühstück = before breakfast; jedes Jahr = every year; an Weihnachten = at Christmas"""
)

_DEFINITE = {"m": "der", "f": "die", "n": "das"}
_DEFINITE_ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
_INDEFINITE_ACCUSATIVE = {"m": "einen", "f": "eine", "n": "ein"}
_AFTER_DEFINITE_ACCUSATIVE = {"m": "en", "f": "e", "n": "e"}
_AFTER_INDEFINITE_ACCUSATIVE = {"m": "en", "f": "e", "n": "es"}


def sentence(rng: Random) -> Phrase:
    """A random sentence of six to twelve words."""
    kind = rng.choice((_object, _place, _two, _we, _rain, _because))
    german, english = kind(rng)
    return Phrase(f"{german[0].upper()}{german[1:]}.", f"{english[0].upper()}{english[1:]}.")


def _object(rng: Random) -> tuple[str, str]:
    time, (subject, who), (thing, what) = rng.choice(TIMES), _subject(rng), _accusative(rng)
    verb, place = rng.choice(TRANSITIVE), rng.choice(PLACES)
    german = f"{time[0]} {verb[0]} {subject} {thing} {place[0]}"
    return german, f"{time[1]} {who} {verb[2]} {what} {place[1]}"


def _place(rng: Random) -> tuple[str, str]:
    (subject, who), verb = _subject(rng), rng.choice(INTRANSITIVE)
    time, place = rng.choice(TIMES), rng.choice(PLACES)
    return f"{subject} {verb[0]} {time[0]} {place[0]}", f"{who} {verb[2]} {place[1]} {time[1]}"


def _two(rng: Random) -> tuple[str, str]:
    (subject, who), (thing, what), verb = _subject(rng), _accusative(rng), rng.choice(TRANSITIVE)
    (other, whom), does, place = _subject(rng), rng.choice(INTRANSITIVE), rng.choice(PLACES)
    german = f"{subject} {verb[0]} {thing}, und {other} {does[0]} {place[0]}"
    return german, f"{who} {verb[2]} {what}, and {whom} {does[2]} {place[1]}"


def _we(rng: Random) -> tuple[str, str]:
    verb, (thing, what) = rng.choice(TRANSITIVE), _accusative(rng)
    time, place = rng.choice(TIMES), rng.choice(PLACES)
    return f"wir {verb[1]} {time[0]} {thing} {place[0]}", f"we {verb[3]} {what} {place[1]} {time[1]}"


def _rain(rng: Random) -> tuple[str, str]:
    (subject, who), verb, place = _subject(rng), rng.choice(INTRANSITIVE), rng.choice(PLACES)
    weather, how = rng.choice((("regnet", "rains"), ("schneit", "snows"), ("dunkel wird", "gets dark")))
    return f"wenn es {weather}, {verb[0]} {subject} {place[0]}", f"when it {how}, {who} {verb[2]} {place[1]}"


def _because(rng: Random) -> tuple[str, str]:
    does, place = rng.choice(INTRANSITIVE), rng.choice(PLACES)
    (subject, who), (thing, what), verb = _subject(rng), _accusative(rng), rng.choice(TRANSITIVE)
    german = f"wir {does[1]} {place[0]}, weil {subject} {thing} {verb[0]}"
    return german, f"we {does[3]} {place[1]} because {who} {verb[2]} {what}"


def _subject(rng: Random) -> tuple[str, str]:
    """A subject in the nominative: definite article, in half of the cases an adjective."""
    gender, noun, english = rng.choice(SUBJECTS)
    if rng.random() < 0.5:
        return f"{_DEFINITE[gender]} {noun}", f"the {english}"
    adjective, how = rng.choice(MOODS)
    return f"{_DEFINITE[gender]} {adjective}e {noun}", f"the {how} {english}"


def _accusative(rng: Random) -> tuple[str, str]:
    """An object in the accusative: definite or indefinite article, mostly an adjective."""
    gender, noun, english = rng.choice(OBJECTS)
    definite = rng.random() < 0.3
    article = (_DEFINITE_ACCUSATIVE if definite else _INDEFINITE_ACCUSATIVE)[gender]
    if rng.random() < 0.3:
        german, words = f"{article} {noun}", english
    else:
        adjective, how = rng.choice(ADJECTIVES)
        ending = (_AFTER_DEFINITE_ACCUSATIVE if definite else _AFTER_INDEFINITE_ACCUSATIVE)[gender]
        german, words = f"{article} {adjective}{ending} {noun}", f"{how} {english}"
    return german, f"the {words}" if definite else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# {g} is the German, {e} the English, {c} the place of a call. The German stands in English text.
STATEMENTS = (
    "My aunt wrote on the card: {g} In English that is:{c} {e}",
    "A sign in the hall says: {g} This means:{c} {e}",
    "The song begins with the line: {g} Translated:{c} {e}",
    "In the first lesson we learned to say: {g} The meaning is:{c} {e}",
    "The guide read the words on the wall: {g} She explained:{c} {e}",
    "On the back of the photo it says: {g} That is to say:{c} {e}",
    "The German letter ends with this: {g} A friend translated it:{c} {e}",
    "They shouted from the window: {g} In other words:{c} {e}",
)
# Held-out wordings; the answer is the English sentence.
HELD_OUT = (
    "What does this German line mean? {g} It means:",
    "Please translate for me: {g} English:",
    "I do not understand this sentence: {g} The translation is:",
)
