"""Made-up prose in five languages, plain enough that a language detector knows it for what it is."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Language:
    """Words and sentences; {n} is a noun with its article, {a} a predicate, {p} a place, {t} a time, {k} a number."""

    nouns: tuple[str, ...]
    predicates: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...]
    sentences: tuple[str, ...]
    menu: tuple[str, ...]

    def sentence(self, rng: np.random.Generator) -> str:
        pattern = self.sentences[rng.integers(len(self.sentences))]
        for slot, words in (("{n}", self.nouns), ("{a}", self.predicates), ("{p}", self.places), ("{t}", self.times)):
            while slot in pattern:
                pattern = pattern.replace(slot, words[rng.integers(len(words))], 1)
        text = pattern.replace("{k}", str(rng.integers(2, 900)))
        return text[0].upper() + text[1:]


def _words(text: str) -> tuple[str, ...]:
    return tuple(w.strip() for w in text.split(","))


LANGUAGES = {
    "en": Language(
        _words("the old bridge, the baker, my neighbour, the small museum, a grey cat, the river, our teacher, the "
               "train, the market, a young painter, the garden, the captain, the library, the wooden boat, the choir"),
        _words("quiet and almost empty, famous for its colours, much older than it looks, closed for repairs, full of "
               "visitors, hard to find, known to everybody here, covered with snow, a little strange, worth the walk"),
        _words("behind the station, near the harbour, at the end of the street, in the village, on the other side of "
               "the hill, beside the school, under the trees, in the middle of the square, by the lake"),
        _words("in the early morning, last summer, every second Sunday, after the rain, two years ago, at night, "
               "before the war, when the shops open, during the holidays"),
        ("{t} {n} was {a}, and nobody knew why.", "we saw {n} {p} together with {n}.",
         "about {k} people came to see {n} {t}.", "it is said that {n} stood {p} for {k} years.",
         "{n} and {n} met {p}, which was {a} {t}.", "if you walk {p} you will find {n}, which is {a}.",
         "I would rather wait for {n} than go {p} {t}.", "there were {k} photographs of {n} {p}.",
         "nothing has changed {p} since {n} left {t}.", "please remember that {n} is {a} {t}."),
        _words("Home, About us, Contact, Privacy policy, Terms of use, Newsletter, Jobs")),
    "de": Language(
        _words("die alte Brücke, der Bäcker, mein Nachbar, das kleine Museum, eine graue Katze, der Fluss, unsere "
               "Lehrerin, der Zug, der Markt, eine junge Malerin, der Garten, der Kapitän, die Bücherei, das Holzboot"),
        _words("still und fast leer, berühmt für die Farben, viel älter als gedacht, wegen Umbaus geschlossen, voller "
               "Besucher, schwer zu finden, hier allen bekannt, mit Schnee bedeckt, ein wenig seltsam, den Weg wert"),
        _words("hinter dem Bahnhof, in der Nähe des Hafens, am Ende der Straße, im Dorf, auf der anderen Seite des "
               "Hügels, neben der Schule, unter den Bäumen, mitten auf dem Platz, am See"),
        _words("am frühen Morgen, im letzten Sommer, jeden zweiten Sonntag, nach dem Regen, vor zwei Jahren, in der "
               "Nacht, vor dem Krieg, während der Ferien"),
        ("{t} war {n} {a}, und niemand wusste warum.", "wir haben {n} {p} zusammen gesehen, dazu {n}.",
         "ungefähr {k} Leute kamen {t}, und {n} war auch dabei.", "man sagt, dass {n} {p} seit {k} Jahren steht.",
         "{n} und {n} trafen sich {p}, {t} war es dort {a}.", "wer {p} geht, findet etwas, und {n} ist {a}.",
         "es gab {k} Bilder {p}, und {n} war auf allen zu sehen.", "nichts hat sich {p} verändert, nur {n} ist {a}."),
        _words("Startseite, Über uns, Kontakt, Datenschutz, Impressum, Rundbrief, Stellen")),
    "fr": Language(
        _words("le vieux pont, le boulanger, mon voisin, le petit musée, un chat gris, la rivière, notre institutrice, "
               "le train, le marché, une jeune peintre, le jardin, le capitaine, la bibliothèque, le bateau en bois"),
        _words("calme et presque vide, célèbre pour ses couleurs, plus ancien que prévu, fermé pour travaux, plein de "
               "visiteurs, difficile à trouver, connu de tous ici, couvert de neige, un peu étrange"),
        _words("derrière la gare, près du port, au bout de la rue, dans le village, de l'autre côté de la colline, à "
               "côté de l'école, sous les arbres, au milieu de la place, au bord du lac"),
        _words("tôt le matin, l'été dernier, un dimanche sur deux, après la pluie, il y a deux ans, pendant la nuit, "
               "avant la guerre, pendant les vacances"),
        ("{t}, {n} était {a}, et personne ne savait pourquoi.", "nous avons vu {n} {p} avec {n}.",
         "environ {k} personnes sont venues voir {n} {t}.", "on dit que {n} se trouvait {p} depuis {k} ans.",
         "{n} et {n} se sont retrouvés {p}, ce qui était {a} {t}.", "si vous allez {p}, vous verrez {n}, qui est {a}.",
         "il y avait {k} photographies de l'endroit {p}, et {n} était {a}.",
         "rien n'a changé {p} depuis que {n} est {a}."),
        _words("Accueil, Qui sommes-nous, Contact, Confidentialité, Mentions légales, Lettre, Emplois")),
    "es": Language(
        _words("el puente viejo, el panadero, mi vecino, el pequeño museo, un gato gris, el río, nuestra maestra, el "
               "tren, el mercado, una joven pintora, el jardín, el capitán, la biblioteca, el barco de madera"),
        _words("tranquilo y casi vacío, famoso por sus colores, mucho más antiguo de lo que parece, cerrado por obras, "
               "lleno de visitantes, difícil de encontrar, conocido por todos aquí, cubierto de nieve, algo extraño"),
        _words("detrás de la estación, cerca del puerto, al final de la calle, en el pueblo, al otro lado de la "
               "colina, junto a la escuela, bajo los árboles, en medio de la plaza, a orillas del lago"),
        _words("por la mañana temprano, el verano pasado, cada dos domingos, después de la lluvia, hace dos años, "
               "por la noche, antes de la guerra, durante las vacaciones"),
        ("{t}, {n} estaba {a}, y nadie sabía por qué.", "vimos {n} {p} junto con {n}.",
         "unas {k} personas vinieron a ver {n} {t}.", "se dice que {n} estuvo {p} durante {k} años.",
         "{n} y {n} se encontraron {p}, que estaba {a} {t}.", "si usted camina {p}, encontrará {n}, que está {a}.",
         "había {k} fotografías de {n} {p}.", "nada ha cambiado {p} desde que {n} se fue {t}."),
        _words("Inicio, Quiénes somos, Contacto, Privacidad, Aviso legal, Boletín, Empleo")),
    "it": Language(
        _words("il vecchio ponte, il fornaio, il mio vicino, il piccolo museo, un gatto grigio, il fiume, la nostra "
               "maestra, il treno, il mercato, una giovane pittrice, il giardino, il capitano, la biblioteca"),
        _words("tranquillo e quasi vuoto, famoso per i suoi colori, molto più antico di quanto sembri, chiuso per "
               "lavori, pieno di visitatori, difficile da trovare, conosciuto da tutti qui, un po' strano"),
        _words("dietro la stazione, vicino al porto, in fondo alla strada, nel villaggio, dall'altra parte della "
               "collina, accanto alla scuola, sotto gli alberi, in mezzo alla piazza, sulla riva del lago"),
        _words("la mattina presto, l'estate scorsa, ogni due domeniche, dopo la pioggia, due anni fa, di notte, prima "
               "della guerra, durante le vacanze"),
        ("{t} {n} era {a}, e nessuno sapeva perché.", "abbiamo visto {n} {p} insieme con {n}.",
         "circa {k} persone sono venute a vedere {n} {t}.", "si dice che {n} si trovasse {p} da {k} anni.",
         "{n} e {n} si sono incontrati {p}, che era {a} {t}.", "se andate {p} troverete {n}, che è {a}.",
         "c'erano {k} fotografie di {n} {p}.", "non è cambiato nulla {p} da quando {n} è {a}."),
        _words("Pagina iniziale, Chi siamo, Contatti, Riservatezza, Note legali, Notiziario, Lavoro")),
}
