"""Endless invented product texts, from a seed. They train a recognizer for the texts of catalogs.

No real catalog is in them. They mix a small vocabulary that is written here, syllables that form no word, and
random characters. A network therefore learns to see letters and not to guess words.
"""

from collections.abc import Callable
from random import Random


def _listed(words: str, separator: str | None = None) -> list[str]:
    return [" ".join(word.split()) for word in words.split(separator)]


NOUNS = _listed(
    """
    adapter apron bag bandage battery beans belt bit blade blanket blender board bolt book bottle bowl box
    bracket bread brush bucket bulb butter cable candle cap card cartridge case cereal chain chair charger
    cheese chips chocolate clamp cleaner clip clock coffee collar compass conditioner connector cookies cord
    cover cream crib cup curtain cutter desk detergent dish dispenser door drawer dress drill duct fan
    faucet file filter fitting flask flour foil folder fork frame funnel fuse gasket gauge gauze glass
    gloves glue guitar hammer handle hat headphones helmet hinge holder hook hose ink jacket jar juice
    kettle keyboard kit knife label ladder lamp lens lid light lock lotion magnet marker mask mat meter milk
    mirror mixer monitor mouse mug nail notebook nozzle nut oil organizer outlet paint pan paper paste pen
    pencil pepper phone pillow pin pipe plate pliers plug pocket printer probe pump purse rack razor ring
    rope router rug ruler sandals sauce saw scale scissors screw seal sensor set shampoo sheet shelf shirt
    shoes skillet soap socket socks sofa soup spatula speaker sponge spoon spray stand staple stool strap
    sugar switch syringe table tablet tape tea thermometer tie tile timer tissue toaster tool toothbrush
    towel toy tray tripod tube tumbler valve vase vinegar wallet washer watch water wheel wipes wire wrap
    wrench yarn yogurt zipper beaker pipette centrifuge tubing stirrer microscope slides
    """
)
QUALITIES = _listed(
    """
    acrylic adjustable aluminum anti-slip assorted automatic big black blue brass brown chrome clear compact
    cordless cotton deluxe digital disposable double dry dual durable electric ergonomic extra fine flat
    flexible folding fresh full galvanized glossy gold gray green heavy heavy-duty high hot household
    industrial large leather light lightweight liquid long low magnetic matte medium metal micro mini multi
    natural navy new nylon organic original oval pink plastic portable premium professional pure purple
    rechargeable red reusable round rubber scented self-adhesive sharp silicone silver single small soft
    solid square stainless standard steel sterile strong super thick thin titanium traditional triple ultra
    universal unscented vinyl waterproof white wide wireless wood wooden yellow zinc plated threaded hex
    quilted whole low-fat ready
    """
)
SMALL = _listed(
    """
    and for with of in the to by a on or from per no. w/ size type model series each your is this all at it
    its it's if will fill still until one
    our other use used use: includes items only off out over
    """
)
SHELVES = _listed(
    """
    Home & Kitchen | Tools | Industrial & Scientific | Grocery | Health Care | Office Products | Electronics
    | Patio, Lawn & Garden | Automotive | Pet Supplies | Toys & Games | Beauty | Fasteners | Lab & Test |
    Baby | Sports & Outdoors | Arts, Crafts & Sewing | Lighting | Hardware | Cleaning | Storage | Bath |
    Furniture | Snacks | Beverages | Video Games | Accessories | Clothing
    """,
    separator="|",
)
NAMES = _listed(
    """
    color material size weight brand style pack shape price unit length width height voltage finish country
    department thread diameter capacity power warranty available sub_category item_form
    """
)
UNITS = _listed(
    """
    mm cm m in in. ft oz fl oz lb lbs kg g mg ml mL L qt gal pt V W A mA mAh Hz GHz MHz kW ct pc pcs pk GB
    TB MB °C °F µm µL % " ' '' ” ’ mil psi rpm dB lm K yd sq ft AWG Ga ea doz x
    """
)
FRACTIONS = _listed(
    """
    1/2 1/4 3/4 1/8 3/8 5/8 7/8 1/16 3/16 5/16 1/32 2/3 ½ ¼ ¾ ⅛ ⅜ ⅝ ⅞ ⅓ ⅔
    """
)
ONSETS = _listed(
    """
    b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sc sh sk sl sm sn sp st str sw t
    th tr tw v w wh x y z
    """
)
NUCLEI = _listed(
    """
    a e i o u ai ea ee ia ie io oa oo ou y
    """
)
CODAS = (
    _listed(
        """
    b ck ct d ff g ll lt m mp n nd ng nt p r rd rk rm rn rt s sh ss st t th tt x zz il li
    """
    )
    + [""] * 12
)
ACCENTS = {"a": "áàâäãå", "c": "ç", "e": "éèêë", "i": "íìîï", "n": "ñ", "o": "óòôöõø", "u": "úùûü", "y": "ýÿ"}
JOINTS = (", ", " - ", " – ", " / ", " & ", "; ", " + ", " | ", "/", ",", "-")
ENDS, END_SHARES = ("", ",", ".", ":", ";", "!", "?"), (80, 8, 6, 2, 2, 1, 1)  # after a word in a sentence
NARROW = "iiilllIjtfr1.,:;'|!()[]-"
ALIKE = "O0oQD1lI|5S8B2Z6Gg9uvVU"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Characters that have no class of their own.
STRANGE = "αβγδλσφжщяфд№⌀☆★✓◆"


class ProductTexts:
    """Draws one text after another from `random`. The characters of `rare` appear now and then."""

    def __init__(self, random: Random, rare: str) -> None:
        self._random, self._rare = random, rare

    def next(self) -> str:
        """A text of several fields, joined as service.core.render.item_text joins them."""
        random = self._random
        parts = [self._title() + random.choice(("", "", "", ".", "!"))]
        if random.random() < 0.5:
            parts.append(self._word())
        if random.random() < 0.5:
            parts.append(" > ".join(random.choice(SHELVES) for _ in range(random.randint(1, 4))))
        num_named = random.choice((0, 0, 1, 2, 3))
        parts.extend(f"{random.choice(NAMES)} {self._piece()}" for _ in range(num_named))
        if random.random() < 0.4:
            parts.append(self._sentence())
        return "; ".join(parts)

    def _title(self) -> str:
        random = self._random
        words = [self._piece()]
        for _ in range(random.randint(1, 8)):
            joint = " " if random.random() < 0.7 else random.choice(JOINTS)
            piece = self._piece()
            words += [joint, f"({piece})" if random.random() < 0.06 else piece]
        return "".join(words)

    def _sentence(self) -> str:
        random = self._random
        words = []
        for _ in range(random.randint(4, 16)):
            piece = random.choice(SMALL) if random.random() < 0.3 else self._piece()
            words.append(piece + random.choices(ENDS, END_SHARES)[0])
        return " ".join(words) + "."

    def _piece(self) -> str:
        kinds: tuple[Callable[[], str], ...] = (
            self._word, self._part_number, self._dimension, self._measure, self._pack, self._price,
            self._noise, self._narrow,
        )  # fmt: skip
        return self._random.choices(kinds, (58, 8, 7, 10, 5, 4, 5, 3))[0]()

    def _word(self) -> str:
        random = self._random
        match random.choices(("noun", "quality", "small", "syllables", "letters"), (28, 20, 6, 36, 10))[0]:
            case "noun":
                word = random.choice(NOUNS) + ("s" if random.random() < 0.2 else "")
            case "quality":
                word = random.choice(QUALITIES)
            case "small":
                word = random.choice(SMALL)
            case "syllables":
                word = "".join(
                    random.choice(ONSETS) + random.choice(NUCLEI) + random.choice(CODAS)
                    for _ in range(random.randint(1, 3))
                )
            case _:
                word = "".join(random.choice(LETTERS) for _ in range(random.randint(1, 8)))
        if random.random() < 0.05:
            word = "".join(
                random.choice(ACCENTS[letter]) if letter in ACCENTS and random.random() < 0.4 else letter
                for letter in word
            )
        if random.random() < 0.03:
            word += random.choice(("®", "™", "'s", "’s", "©", "*"))
        return random.choices((word, word.capitalize(), word.upper()), (52, 32, 16))[0]

    def _number(self) -> str:
        random = self._random
        match random.randint(0, 5):
            case 0:
                return str(random.randint(0, 9))
            case 1:
                return str(random.randint(10, 99))
            case 2:
                return str(random.randint(100, 9999))
            case 3:
                return f"{random.randint(0, 99)}.{random.randint(0, 99)}"
            case 4:
                return (
                    f"{random.randint(1, 999):,}" if random.random() < 0.5 else f"{random.randint(1, 99)},000"
                )
        fraction = random.choice(FRACTIONS)
        return random.choice(
            (fraction, f"{random.randint(1, 12)}-{fraction}", f"{random.randint(1, 12)} {fraction}")
        )

    def _part_number(self) -> str:
        random = self._random
        parts = []
        for _ in range(random.randint(1, 4)):
            if random.random() < 0.5:
                parts.append("".join(random.choice(LETTERS).upper() for _ in range(random.randint(1, 4))))
            else:
                parts.append("".join(random.choice("0123456789") for _ in range(random.randint(1, 6))))
        return random.choice(("", "", "-", "/", ".", "#")).join(parts)

    def _dimension(self) -> str:
        random = self._random
        unit = random.choice(UNITS)
        joint = random.choice((" x ", "x", " × ", " X ", '" x '))
        sizes = joint.join(self._number() for _ in range(random.randint(2, 3)))
        match random.randint(0, 2):
            case 0:
                return f"M{random.randint(2, 24)} x {sizes} {unit}"
            case 1:
                return f"{sizes}{unit}"
        return f"{sizes} {unit}"

    def _measure(self) -> str:
        sign = self._random.choice(("", "", "", "", "", "±", "-", "+", "~", "<", ">", "≤", "≥"))
        return sign + self._number() + self._random.choice(("", " ", " ")) + self._random.choice(UNITS)

    def _pack(self) -> str:
        count = self._random.randint(2, 500)
        forms = (
            f"{count} ct",
            f"Pack of {count}",
            f"({count} pack)",
            f"{count}/Box",
            f"{count}-Count",
            f"{count}pk",
        )
        return self._random.choice(forms)

    def _price(self) -> str:
        amount = f"{self._random.randint(0, 999)}.{self._random.randint(0, 99):02d}"
        return self._random.choice((f"${amount}", f"€{amount}", f"£{amount}", f"{amount} USD", amount))

    def _noise(self) -> str:
        """Random characters. Some of them have no class of their own."""
        random = self._random
        letters = self._rare + STRANGE if random.random() < 0.1 else self._rare
        printable = "".join(map(chr, range(0x21, 0x7F)))
        source = random.choices((printable, letters), (60, 40))[0]
        return "".join(random.choice(source) for _ in range(random.randint(1, 7)))

    def _narrow(self) -> str:
        """Characters too narrow to have a frame each, or characters that look alike."""
        source = self._random.choices((NARROW, ALIKE), (70, 30))[0]
        return "".join(self._random.choice(source) for _ in range(self._random.randint(2, 7)))
