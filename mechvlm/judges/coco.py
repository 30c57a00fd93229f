"""The 80 classes of MS COCO, with other words for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["COCO", "NO_OBJECTS"]

_WORDS: Mapping[str, tuple[str, ...]] = {
    # people and what they ride
    "person": (
        *("man", "woman", "child", "kid", "boy", "girl", "baby", "toddler", "infant"),
        *("lady", "gentleman", "guy", "adult", "teenager", "pedestrian", "passenger"),
        *("skier", "snowboarder", "surfer", "skateboarder", "cyclist", "biker"),
        *("player", "catcher", "umpire", "spectator", "rider"),
        *("policeman", "police officer", "fireman", "firefighter", "chef", "crowd"),
        *("bride", "groom", "worker", "waiter", "waitress", "farmer", "individuals"),
    ),
    "bicycle": ("bike", "cycle", "mountain bike", "tricycle"),
    "car": ("automobile", "sedan", "taxi", "cab", "minivan", "suv", "police car"),
    "motorcycle": ("motorbike", "motor bike", "scooter", "moped", "motor scooter"),
    "airplane": ("plane", "aeroplane", "aircraft", "jet", "jetliner", "airliner"),
    "bus": ("double decker", "double decker bus", "school bus", "tour bus"),
    "train": ("locomotive", "subway train", "tram", "trolley", "passenger train"),
    "truck": ("lorry", "pickup", "pickup truck", "fire truck", "fire engine"),
    "boat": ("ship", "sailboat", "canoe", "kayak", "ferry", "yacht", "raft", "gondola"),
    # the street
    "traffic light": ("traffic signal", "stoplight", "stop light", "street signal"),
    "fire hydrant": ("hydrant", "fireplug"),
    "stop sign": (),
    "parking meter": (),
    "bench": ("park bench", "pew"),
    # animals
    "bird": (
        *("seagull", "gull", "pigeon", "duck", "goose", "swan", "parrot", "owl"),
        *("eagle", "chicken", "hen", "rooster", "penguin", "ostrich", "flamingo"),
    ),
    "cat": ("kitten", "kitty"),
    "dog": ("puppy", "pup", "bulldog", "terrier", "poodle", "retriever"),
    "horse": ("pony", "foal", "stallion", "mare"),
    "sheep": ("lamb", "ram", "ewe"),
    "cow": ("cattle", "bull", "calf", "calves", "ox", "oxen"),
    "elephant": ("baby elephant",),
    "bear": ("polar bear", "grizzly", "brown bear", "bear cub", "panda", "baby bear"),
    "zebra": ("baby zebra",),
    "giraffe": ("baby giraffe",),
    # what people carry and play with
    "backpack": ("rucksack", "knapsack", "back pack"),
    "umbrella": ("parasol",),
    "handbag": ("purse", "hand bag", "shoulder bag"),
    "tie": ("necktie", "bow tie"),
    "suitcase": ("luggage", "briefcase", "suit case"),
    "frisbee": ("flying disc", "flying disk"),
    "skis": ("ski",),
    "snowboard": ("snow board",),
    "sports ball": (
        *("ball", "baseball ball", "tennis ball", "soccer ball", "football"),
        *("basketball", "volleyball", "beach ball"),
    ),
    "kite": (),
    "baseball bat": ("bat",),
    "baseball glove": ("baseball mitt", "catchers mitt", "mitt"),
    "skateboard": ("skate board",),
    "surfboard": ("surf board",),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    # the table
    "bottle": ("wine bottle", "beer bottle", "water bottle"),
    "wine glass": ("wineglass", "goblet", "champagne glass"),
    "cup": ("mug", "coffee cup", "teacup", "tea cup", "coffee mug"),
    "fork": (),
    "knife": (),
    "spoon": ("tablespoon", "teaspoon"),
    "bowl": (),
    "banana": (),
    "apple": (),
    "sandwich": ("burger", "hamburger", "cheeseburger", "sub sandwich"),
    "orange": ("tangerine", "mandarin"),
    "broccoli": (),
    "carrot": (),
    "hot dog": ("hotdog",),
    "pizza": ("pizza slice", "slice of pizza"),
    "donut": ("doughnut",),
    "cake": ("cupcake", "birthday cake", "wedding cake"),
    # the house
    "chair": ("armchair", "stool", "rocking chair", "office chair"),
    "couch": ("sofa", "loveseat", "settee"),
    "potted plant": ("houseplant", "house plant", "plant in a pot"),
    "bed": ("bunk bed",),
    "dining table": ("table", "kitchen table", "coffee table", "dinner table"),
    "toilet": ("urinal", "toilet bowl"),
    "tv": ("television", "television set", "tv set", "tv screen"),
    "laptop": ("laptop computer", "notebook computer"),
    "mouse": ("computer mouse", "computer mice"),
    "remote": ("remote control", "game controller", "wii remote", "controller"),
    "keyboard": ("computer keyboard",),
    "cell phone": ("cellphone", "mobile phone", "phone", "smartphone", "smart phone"),
    "microwave": ("microwave oven",),
    "oven": ("stove", "stovetop"),
    "toaster": ("toaster oven",),
    "sink": ("washbasin", "wash basin", "kitchen sink"),
    "refrigerator": ("fridge", "freezer"),
    "book": ("textbook", "paperback"),
    "clock": ("clock face", "alarm clock", "clock tower"),
    "vase": ("flower vase",),
    "scissors": (),
    "teddy bear": ("stuffed bear", "teddy"),
    "hair drier": ("hair dryer", "hairdryer", "blow dryer"),
    "toothbrush": ("tooth brush",),
}


def _in_orange(words: tuple[str, ...]) -> tuple[str, ...]:
    """The colour before each word: an orange cat is a cat and no fruit."""
    return tuple(f"orange {word}" for word in words)


COCO: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (*more, *_in_orange((name, *more))) for name, more in _WORDS.items()}
)
"""Each class -> other words for it, in the singular."""

NO_OBJECTS: tuple[str, ...] = (
    *("bus stop", "bus station", "train station", "train track", "train platform"),
    *("car park", "car seat", "boat dock", "dog house", "bird house", "bear claw"),
    *("toilet paper", "toilet seat", "toilet brush", "bed sheet", "bed frame"),
    *("cake stand", "cup holder", "book shelf", "bottle cap", "jet ski"),
    *("table lamp", "table cloth", "mouse pad", "ski lift", "ski slope"),
    *("apple juice", "orange juice", "orange light", "orange color", "orange colour"),
    *("orange shirt", "orange jacket", "orange vest", "orange hat", "orange sky"),
    *("orange and white", "orange and black", "orange and yellow", "orange and blue"),
    *("remote area", "remote location", "ski resort", "ski pole", "ski boot"),
)
"""Phrases that hold a class's word and do not mean it."""
