"""Grade-school word problems in GSM8K's format, made from TEMPLATES: numbers to draw, the question,
the worked answer.

In a template

- `count 2-9, bill 20|50` draws one number from a range and one from a list;
- `{name}` is such a number, a person or a thing drawn for this problem, and `(a|b)` one of these
  phrases;
- `[total: count*price]` is a step, written "6*4 = <<6*4=24>>24", whose result later steps call
  `total`; with a dollar sign, `[$total: ...]`, it is written "6*4 = $<<6*4=24>>24". The last step
  is the answer. Numbers are drawn again until every step comes out whole and above 1.
"""

import operator
import random
import re

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
PEOPLE = {
    "she": [
        "Mia",
        "Aisha",
        "Lena",
        "Priya",
        "Chloe",
        "Hannah",
        "Yuki",
        "Rosa",
        "Nadia",
        "Ella",
        "Ingrid",
        "Zoe",
    ],
    "he": [
        "Omar",
        "Ben",
        "Luca",
        "Ravi",
        "Mateo",
        "Finn",
        "Kenji",
        "Paul",
        "Samir",
        "Theo",
        "Jonas",
        "Diego",
    ],
}
THINGS = {
    "fruit": ["apples", "oranges", "pears", "peaches", "plums", "bananas", "mangoes", "lemons"],
    "stationery": [
        "notebooks",
        "folders",
        "markers",
        "erasers",
        "rulers",
        "sketchbooks",
        "pencil cases",
    ],
    "toy": [
        "marbles",
        "stickers",
        "toy cars",
        "trading cards",
        "beads",
        "model planes",
        "postcards",
        "seashells",
    ],
    "treat": ["cookies", "muffins", "cupcakes", "brownies", "scones", "pretzels"],
    "flower": ["tulips", "roses", "sunflowers", "daisies", "lilies", "carnations"],
    "crop": ["tomato", "pepper", "cabbage", "pumpkin", "carrot", "bean"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"],
    "place": ["library", "museum", "swimming pool", "market", "stadium", "harbour"],
    "show": ["museum", "zoo", "cinema", "circus", "aquarium", "concert"],
    "job": [
        "mows lawns",
        "walks dogs",
        "washes cars",
        "babysits",
        "delivers newspapers",
        "tutors maths",
    ],
}

# (numbers, question, answer)
TEMPLATES = [
    (
        "count 2-9, price 2-9, bill 20|50|100",
        "{name} (buys|picks up|gets) {count} {stationery} (at|for) ${price} each and pays with a "
        "${bill} bill. "
        "(How much change does {pronoun} get?|How many dollars does {pronoun} get back?)",
        "The {stationery} cost [$cost: count*price].\n{name} gets back [$change: bill-cost].",
    ),
    (
        "first 6-60",
        "{name} sold {first} {treat} on {day} and half as many the (next day|day after). "
        "How many {treat} did {pronoun} sell (altogether|in total|over the two days)?",
        "The next day {name} sold [second: first/2] {treat}.\n"
        "Together that makes [total: first+second] {treat}.",
    ),
    (
        "own 4-25, times 2-5",
        "{name} has {own} {toy}. {other} has {times} times as many (as {name}|as that). "
        "(How many {toy} do they have together?|How many {toy} do the two of them have in all?)",
        "{other} has [theirs: own*times] {toy}.\nTogether they have [total: own+theirs] {toy}.",
    ),
    (
        "hens 3-12, eggs 2-6, eaten 2-9, price 2-5",
        "{name} keeps {hens} hens, and each (lays|gives) {eggs} eggs a week. {Pronoun} "
        "(eats|keeps) {eaten} of "
        "them and sells the rest for ${price} each. How many dollars does {pronoun} (earn|make) "
        "in a week?",
        "The hens lay [laid: hens*eggs] eggs a week.\n{name} sells [sold: laid-eaten] of them.\n"
        "{Pronoun} earns [$earned: sold*price].",
    ),
    (
        "start 20-45, off 3-15, on 2-20",
        "A bus (leaves the station|sets off) with {start} passengers. At the {place} {off} people "
        "get off and {on} "
        "get on. How many passengers are (now on the bus|on the bus after that)?",
        "After {off} people got off there were [left: start-off] passengers.\n"
        "Then there were [now: left+on] passengers.",
    ),
    (
        "pages 60-240, daily 8-25, days 3-7",
        "{name} is reading a book of {pages} pages. {Pronoun} reads {daily} pages a day for "
        "{days} days. "
        "How many pages (are left|does {pronoun} still have to read)?",
        "{name} has read [read: daily*days] pages.\nThere are [left: pages-read] pages left.",
    ),
    (
        "boxes 3-9, each 4-12, friends 2-6",
        "{name} has {boxes} boxes with {each} {treat} in each. {Pronoun} shares them "
        "(equally|evenly) among {friends} "
        "friends. How many {treat} does each friend get?",
        "There are [total: boxes*each] {treat}.\nEach friend gets [share: total/friends] {treat}.",
    ),
    (
        "hours 2-8, wage 8-15, tip 4-30",
        "{name} {job} for ${wage} an hour. On {day} {pronoun} worked {hours} hours and got ${tip} "
        "in tips. "
        "How (much money|many dollars) did {pronoun} earn that day?",
        "{name} earned [$pay: hours*wage] for the work.\nWith the tips that is [$total: pay+tip].",
    ),
    (
        "weekly 4-15, weeks 3-9, gift 5-30",
        "{name} saves ${weekly} (a week|every week) for {weeks} weeks. Then {pronoun} spends "
        "${gift} on a "
        "(present|gift) for {other}. How much money does {pronoun} have left?",
        "{name} saves [$saved: weekly*weeks].\n"
        "After the present there is [$left: saved-gift] left.",
    ),
    (
        "rows 3-9, plants 4-12, died 2-11",
        "{name} plants {rows} rows of {crop} plants with {plants} plants in each row. (A frost "
        "kills|Snails eat) "
        "{died} of them. How many {crop} plants (are left|survive)?",
        "{name} planted [planted: rows*plants] plants.\n[left: planted-died] plants are left.",
    ),
    (
        "length 5-30, width 3-20, price 2-5",
        "A rectangular garden is {length} metres long and {width} metres wide. A fence costs "
        "${price} a metre. "
        "How many dollars does it cost to (fence the whole garden|put a fence all around it)?",
        "Two sides together are [half: length+width] metres.\n"
        "All around that makes [around: half*2] metres.\n"
        "The fence costs [$cost: around*price].",
    ),
    (
        "start 5-40, rate 3-12, minutes 4-15",
        "A tank (holds|has) {start} litres of water. A tap adds {rate} litres (a minute|every "
        "minute). "
        "How many litres are in the tank after {minutes} minutes?",
        "The tap adds [added: rate*minutes] litres.\n"
        "Then the tank holds [total: start+added] litres.",
    ),
    (
        "age 5-14, gap 2-9, years 3-10",
        "{name} is {age} years old. {other} is {gap} years older. How old will {other} be in "
        "{years} years?",
        "{other} is [now: age+gap] years old now.\n"
        "In {years} years {other} will be [then: now+years].",
    ),
    (
        "price 20-90, percent 10|20|25|30|50",
        "A (jacket|lamp|backpack|radio) costs ${price}. In a sale it is {percent}% (off|cheaper). "
        "How many dollars does {name} (pay|spend) for it in the sale?",
        "The discount is [$discount: price*percent/100].\n{name} pays [$paid: price-discount].",
    ),
    (
        "slow 10-25, first 2-4, fast 30-60, second 2-4",
        "{name} cycles for {first} hours at {slow} kilometres an hour, then rides a train for "
        "{second} hours at {fast} "
        "kilometres an hour. How (far|many kilometres) does {pronoun} travel (in all|altogether)?",
        "By bicycle {name} travels [cycled: slow*first] kilometres.\n"
        "By train it is [ridden: fast*second] kilometres.\n"
        "In all that is [total: cycled+ridden] kilometres.",
    ),
    (
        "trays 2-8, each 6-12, eaten 2-10, bag 2-6",
        "{name} bakes {trays} trays of {treat} with {each} on each tray. The family eats {eaten}. "
        "{Pronoun} "
        "(packs|puts) the rest into bags of {bag}. How many bags does {pronoun} fill?",
        "{name} bakes [baked: trays*each] {treat}.\n[left: baked-eaten] are left.\n"
        "That fills [bags: left/bag] bags.",
    ),
    (
        "twos 3-12, threes 2-8",
        "In a basketball game {name} scores {twos} two-point shots and {threes} three-point shots. "
        "How many points (is that|does {pronoun} score) in total?",
        "The two-point shots give [low: twos*2] points.\n"
        "The three-point shots give [high: threes*3] points.\n"
        "In total that is [total: low+high] points.",
    ),
    (
        "own 5-30, more 3-12",
        "{name} collected {own} {toy}. {other} collected {more} more than {name}. "
        "How many {toy} did they collect (together|altogether)?",
        "{other} collected [theirs: own+more] {toy}.\n"
        "Together they collected [total: own+theirs] {toy}.",
    ),
    (
        "episodes 3-12, minutes 20|25|30|40|45, film 80|90|100|120",
        "On {day} {name} watches {episodes} episodes of {minutes} minutes each and a film of "
        "{film} minutes. "
        "How many minutes does {pronoun} watch (in all|altogether)?",
        "The episodes take [series: episodes*minutes] minutes.\n"
        "With the film that is [total: series+film] minutes.",
    ),
    (
        "adults 2-6, price 8-15, children 2-8, ticket 3-7",
        "Tickets for the {show} cost ${price} for adults and ${ticket} for children. "
        "How many dollars do {adults} adults and {children} children pay (in total|altogether)?",
        "The adults pay [$grown: adults*price].\nThe children pay [$small: children*ticket].\n"
        "In total they pay [$total: grown+small].",
    ),
    (
        "pizzas 2-8, people 3-9, slices 2-4",
        "{name} orders {pizzas} pizzas with 8 slices each. {people} people eat {slices} slices "
        "each. "
        "How many slices (are left|are left over)?",
        "There are [all: pizzas*8] slices.\nThe people eat [eaten: people*slices] slices.\n"
        "[left: all-eaten] slices are left.",
    ),
    (
        "length 12-90, used 3-20, piece 2-9",
        "{name} has {length} centimetres of ribbon. {Pronoun} uses {used} centimetres for a card "
        "and cuts the rest "
        "into pieces of {piece} centimetres. How many pieces does {pronoun} get?",
        "[left: length-used] centimetres are left.\n{name} gets [pieces: left/piece] pieces.",
    ),
    (
        "books 40-120, lent 8-35, back 4-20",
        "A library has {books} books about space. On {day} it lends {lent} of them and {back} "
        "(are brought back|come back). How many of these books does it have then?",
        "After lending it has [left: books-lent] books.\nThen it has [now: left+back] books.",
    ),
    (
        "goal 60-200, raised 15-50, days 3-9",
        "{name}'s class wants to raise ${goal} and has ${raised} so far. There are {days} days "
        "left. "
        "How many dollars must the class raise (each day|a day) to reach the goal?",
        "The class still needs [$missing: goal-raised].\nThat is [$daily: missing/days] a day.",
    ),
    (
        "cars 3-15, bikes 2-12",
        "There are {cars} cars and {bikes} (bicycles|motorbikes) in front of the {place}. "
        "How many wheels do they have (in total|altogether)?",
        "The cars have [four: cars*4] wheels.\nThe others have [two: bikes*2] wheels.\n"
        "Together that is [total: four+two] wheels.",
    ),
    (
        "cows 3-12, birds 4-20",
        "{name}'s farm has {cows} (cows|sheep|goats) and {birds} (chickens|ducks|geese). "
        "How many legs do the animals have?",
        "The four-legged animals have [four: cows*4] legs.\nThe birds have [two: birds*2] legs.\n"
        "All the animals have [total: four+two] legs.",
    ),
    (
        "laps 2-8, metres 50|100|200|400, days 2-5",
        "{name} (runs|swims) {laps} laps of {metres} metres a day. How many metres is that in "
        "{days} days?",
        "A day that is [daily: laps*metres] metres.\n"
        "In {days} days it is [total: daily*days] metres.",
    ),
    (
        "flowers 12-60, vases 2-8",
        "{name} puts {flowers} {flower} equally into {vases} vases. How many {flower} are in each "
        "vase?",
        "Each vase holds [each: flowers/vases] {flower}.",
    ),
    (
        "basket 5-20, baskets 3-8, rotten 2-12",
        "{name} and {other} fill {baskets} baskets with {basket} {fruit} each. {rotten} of the "
        "{fruit} are rotten. "
        "How many good {fruit} (are there|do they have)?",
        "They picked [picked: baskets*basket] {fruit}.\n[good: picked-rotten] of them are good.",
    ),
    (
        "girls 6-18, boys 6-18, group 2-6",
        "A class has {girls} girls and {boys} boys. The teacher makes groups of {group} "
        "(children|pupils). "
        "How many groups are there?",
        "The class has [all: girls+boys] children.\nThat makes [groups: all/group] groups.",
    ),
]


def word_problems(count: int, seed: int) -> list[dict[str, str]]:
    """Return `count` problems with different questions, drawn from each template in turn, in random
    order.
    """
    rng = random.Random(seed)
    answers: dict[str, str] = {}
    while len(answers) < count:
        template = TEMPLATES[len(answers) % len(TEMPLATES)]
        question, answer = word_problem(rng, *template)
        answers.setdefault(question, answer)
    problems = [{"question": question, "answer": answer} for question, answer in answers.items()]
    rng.shuffle(problems)
    return problems


def word_problem(rng: random.Random, numbers: str, question: str, answer: str) -> tuple[str, str]:
    """Fill in one template; see the top of the file."""
    values: dict[str, int] = {}
    worked = ""
    while min(values.values(), default=0) < 2:
        values = {name: draw(rng, choices) for name, choices in map(str.split, numbers.split(", "))}
        worked = work(answer, values)
    words = {kind: rng.choice(things) for kind, things in THINGS.items()}
    pronoun = rng.choice(list(PEOPLE))
    words["name"] = rng.choice(PEOPLE[pronoun])
    words["other"] = rng.choice(
        [name for names in PEOPLE.values() for name in names if name != words["name"]]
    )
    words.update(pronoun=pronoun, Pronoun=pronoun.capitalize())
    phrased = re.sub(
        r"\(([^()]*\|[^()]*)\)", lambda match: rng.choice(match[1].split("|")), question
    )
    result = list(values.values())[-1]
    return phrased.format(**values, **words), f"{worked.format(**values, **words)}\n#### {result}"


def draw(rng: random.Random, choices: str) -> int:
    """Draw from "2-9" or "20|50|100"."""
    if "|" in choices:
        return int(rng.choice(choices.split("|")))
    low, high = choices.split("-")
    return rng.randint(int(low), int(high))


def work(answer: str, values: dict[str, int]) -> str:
    """Write out the steps in `answer` and add their results to `values`, with 0 for what is
    negative or not whole.
    """

    def write(step: re.Match) -> str:
        dollar, name, expression = step.groups()
        first, *others = re.findall(
            r"\w+|[-+*/]", re.sub(r"[a-z]+", lambda name: str(values[name[0]]), expression)
        )
        result = int(first)
        for sign, operand in zip(others[::2], map(int, others[1::2]), strict=True):
            whole = sign != "/" or result % operand == 0
            result = max(0, SIGNS[sign](result, operand)) if whole else 0
        values[name] = result
        written = "".join([first, *others])
        return f"{written} = {dollar}<<{written}={result}>>{result}"

    return re.sub(r"\[(\$?)(\w+): ([^]]+)\]", write, answer)
