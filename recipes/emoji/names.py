"""The concepts that are drawn, their names, and the file of each in the packages."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.emoji.packages import members, read_json

HELD_OUT_SHARE = 0.05
GROUPS_LEFT_OUT = ("component", "flags")

# things that everybody knows, by label: what the kit holds, and what is drawn to look at
COMMON_TEXT = """
red apple; cat face; rocket; grinning face with big eyes; castle; dog face; pizza; umbrella; red heart; octopus
strawberry; automobile; guitar; sunflower; robot; hamburger; house; tropical fish; key; ghost; doughnut; panda
soccer ball; cactus; mushroom; Christmas tree; smiling face with sunglasses; banana; lion; airplane; rose; camera
unicorn; birthday cake; bicycle; owl; light bulb; skull; watermelon; penguin; sailboat; crying face; balloon; frog
french fries; hammer; snowman; elephant; books; cherries; butterfly; bus; angry face; drum; tiger face; carrot; trophy
fire; bear; grapes; gem stone; rainbow; rabbit face; violin; fox; tomato; mobile phone; star; koala; ice cream
locomotive; alien; spouting whale; wrapped gift; horse face; pear; bell; crown; turtle; tangerine; microscope; bomb
dragon; lollipop; sun; bouquet; monkey face; pencil; palm tree; bread; basketball; volcano; snail; candle; cow face
ear of corn; jack-o-lantern; clown face; honeybee; glasses; shark; peach; tent; backpack; snake; telephone; cookie
"""
COMMON = tuple(thing.strip() for thing in COMMON_TEXT.strip().replace("\n", ";").split(";"))

# old name=squashed label, where no label or short code of today has that name; 'name=' where it misleads
OLD_NAMES = """
asterisk= cricket= direct-hit=bullseye dizzy-face=facewithcrossedouteyes pistol=
"""
FX_NAMES = """
2hearts=twohearts americasglobe=globeshowingamericas anguish=anguishedface
anticlockwiseupwardsanddownwardsarrows=counterclockwisearrowsbutton aok=okhand
arrowrightwardsdownwards=rightarrowcurvingdown arrowrightwardsupwards=rightarrowcurvingup
asiaaustraliaglobe=globeshowingasiaaustralia backofenvelope=envelope backwithleftwardsarrow=backarrow
ballotboxboldcheck=checkboxwithcheck ballottboxwithballott=ballotboxwithballot banknotedollar=dollarbanknote
banknoteeuro=eurobanknote banknotepound=poundbanknote banknoteyen=yenbanknote bellcancellation=bellwithslash
blackdownpointingdoublearrow=fastdownbutton blackdroplet=droplet blackleftpointingarrow=reversebutton
blackleftpointingdoublearrow=fastreversebutton blackpushpin=pushpin blackrightpointingarrow=playbutton
blackrightpointingdoublearrow=fastforwardbutton blackskullcrossbones=skullandcrossbones
blackuppointingdoublearrow=fastupbutton blackwaving= blonde=personblondhair bolt=highvoltage
bookmarktab=bookmarktabs bouquetofflowers=bouquet bow=ribbon bowing=personbowing bride=personwithveil
bullhorn=loudspeaker bunny-ears=peoplewithbunnyears bunny=rabbitface bunnyside=rabbit cat=catface
catside=cat cellphone=mobilephone chartdownwardstrend=chartdecreasing chartupwardstrend=chartincreasing
chartupwardstrendyen=chartincreasingwithyen chilipepper=hotpepper
cjkunifiedideograph-a=japanesereservedbutton cjkunifiedideograph-b=japaneseopenforbusinessbutton
cjkunifiedideograph-c=japaneseprohibitedbutton cjkunifiedideograph-d=japanesevacancybutton
cjkunifiedideograph-e=japanesepassinggradebutton cjkunifiedideograph-f=japanesenovacancybutton
cjkunifiedideograph-g=japanesenotfreeofchargebutton cjkunifiedideograph-h=japanesemonthlyamountbutton
cjkunifiedideograph-i=japanesefreeofchargebutton cjkunifiedideograph-j=japaneseapplicationbutton
cjkunifiedideograph-k=japanesediscountbutton clock12oclock=twelveoclock clock12thirty=twelvethirty
clock1oclock=oneoclock clock1thirty=onethirty clock2oclock=twooclock clock2thirty=twothirty
clock3oclock=threeoclock clock3thirty=threethirty clock4oclock=fouroclock clock4thirty=fourthirty
clock5thirty=fivethirty clock6oclock=sixoclock clock6thirty=sixthirty clock7oclock=sevenoclock
clockwisedownupcircledarrows=clockwiseverticalarrows clockwiserightwardsleftwardscirclearrows=repeatbutton
clockwiserightwardsleftwardscirclearrowsone=repeatsinglebutton
closedmailboxlowered=closedmailboxwithloweredflag closedmailboxraised=closedmailboxwithraisedflag
confetti=confettiball construct=constructionworker contact2=bustsinsilhouette contact=bustinsilhouette
controlknob=controlknobs couple=couplewithheart crying=cryingface devilhorns=smilingfacewithhorns
diamondshapewithdotinside=diamondwithadot dissapointedrelief=sadbutrelievedface dog=dogface dogside=dog
doubleexclaimationmark=doubleexclamationmark down=backhandindexpointingdown
downpointingsmallredtrisngle=downwardsbutton dragonhead=dragonface dragonside=dragon
eightspokedasterix=eightspokedasterisk endwithleftwardsarrow=endarrow
envelopedownarrowabove=envelopewitharrow europeafricaglobe=globeshowingeuropeafrica evergreen=evergreentree
exclaimationquestionmark=exclamationquestionmark fallingleaf=fallenleaf faxicon=faxmachine
fishcakeswirl=fishcakewithswirl fistedhand=oncomingfist flexbicep=flexedbiceps floppydisk2=floppydisk
folder=filefolder forkknife=forkandknifewithplate frontfacingchick=frontfacingbabychick frown=personfrowning
frownmouth=frowningfacewithopenmouth girlgirl=womenholdinghands girlguy=womanandmanholdinghands gma=oldwoman
gpa=oldman grineyes=grinningfacewithsmilingeyes grinsquint=grinningsquintingface
grinsweat=grinningfacewithsweat grintears=facewithtearsofjoy grinwide=grinningface
grinwideeyes=grinningfacewithbigeyes guapimao=personwithskullcap guyguy=menholdinghands hampster=hamster
hands=openhands handup=personraisinghand headmassage=persongettingmassage heartarrow=heartwitharrow
heartgreen=greenheart heartpurple=purpleheart heartyellow=yellowheart heavylatincross=latincross
heavymultiplicationsymbol=multiply heels=highheeledshoe high5=raisinghands
highspeedtrainbulletnose=bullettrain index=indexpointingup japaneseangrymask=goblin
keyboardandmouse=keyboard kissclosedeyes=kissingfacewithclosedeyes kisseyes=kissingfacewithsmilingeyes
leaffluttering=leafflutteringinwind left=backhandindexpointingleft leftangerbubble=
leftmagnifyingglass=magnifyingglasstiltedleft leftwritinghand=writinghand leopardside=leopard
lockandkey=lockedwithkey loudlycrying=loudlycryingface lowerleftpen=pen lowerleftpencil=pencil
manltepiececlock=mantelpiececlock mansshirt=tshirt mensrunner=runningshoe mensshoe=mansshoe
meridianglobe=globewithmeridians monkeyhear=hearnoevilmonkey monkeysee=seenoevilmonkey
monkeyspeak=speaknoevilmonkey mouse=mouseface mouseside=mouse musicascend=musicalnote
negativesquaredlatincaptiala=abuttonbloodtype negativesquaredlatincaptialb=bbuttonbloodtype
negativesquaredlatincaptialo=obuttonbloodtype nogesture=persongesturingno
nooneunder18symbol=nooneundereighteen notebookdecorativecover=notebookwithdecorativecover
okgesture=persongesturingok oldpersonalcomputer=laptop onarrowleftright=onarrow onebuttonmouse=computermouse
openfolder=openfilefolder openmailboxlowered=openmailboxwithloweredflag
openmailboxraised=openmailboxwithraisedflag opticaldiscicon=opticaldisk outbox=outboxtray page=pagefacingup
perservere=perseveringface personalcomputer=desktopcomputer phonerightarrowleft=mobilephonewitharrow
pig=pigface pigside=pig pigsnout=pignose pinkwallet=purse pistol= portablestereo=radio
potablewatersystem=potablewater pout=personpouting pouting=enragedface present=wrappedgift
printericon=printer raisedhandpartfingers=vulcansalute raisedhandsfingerssplayed=handwithfingerssplayed
reminder=reminderribbon reversethumbsdown=thumbsdown reversethumbsup=thumbsup reversevictoryhand=victoryhand
right=backhandindexpointingright rightmagnifyingglass=magnifyingglasstiltedright
rightspeaker3soundwaves=speakerhighvolume rightspeechbubble=speechballoon ringingbell=bell
saggitarius=sagittarius sandals=womanssandal screamfear=facescreaminginfear silhouetteohjapan=mapofjapan
sixpointedstarwithdot=dottedsixpointedstar sleuthspy=detective smallfrown=slightlyfrowningface
smallsmile=slightlysmilingface smileeyes=smilingfacewithsmilingeyes smiletongue=facesavoringfood
snowmountains=snowcappedmountain soonwithrightarrow=soonarrow speaker3soundwaves=speakerhighvolume
speakercancellation=mutedspeaker speakeronesoundwave=speakermediumvolume spurtingwhale=spoutingwhale
squaredup=upbutton stormcloud=cloudwithlightning studiomic=studiomicrophone sunraincloud=sunbehindraincloud
sunrays=sun sweatsplash=sweatdroplets telephonereceiver2=telephonereceiver tennisball=tennis
thoughtbaloon=thoughtballoon tiger=tigerface tigerside=tiger tongueoutwink2=squintingfacewithtongue
tongueoutwink=winkingfacewithtongue topwithupwardsarrow=toparrow toykotower=tokyotower
turban=personwearingturban up=backhandindexpointingup uppointingsmallredtrisngle=upwardsbutton
videocasette=videocassette waitress=persontippinghand waningbibbousmoon=waninggibbousmoon wave=waterwave
waving=wavinghand whiteexclaimationmark=whiteexclamationmark whitemediumstar= winking=winkingface
wiredkeyboard=keyboard womansshirt=womansclothes
"""


@dataclass(frozen=True)
class Concept:
    """One thing that the styles draw."""

    code: str  # code points without FE0F, lower case, joined by '-': "1f420"
    label: str
    tags: tuple[str, ...]
    group: str

    @property
    def size_matters(self) -> bool:
        """True when the drawing must stay small on its canvas ("black small square")."""
        return bool({"small", "medium", "medium-small"} & set(self.label.split()))


def code_points(name: str) -> str:
    """The code points of a file name or hexcode, normal form: '0023_FE0F_20E3' -> '23-20e3'."""
    parts = [part.lstrip("0") for part in re.split("[-_ ]", name.lower())]
    return "-".join(part for part in parts if part not in ("fe0f", ""))


def squash(name: str) -> str:
    """A name without anything but letters and digits: 'Piñata', 'man: bald' -> 'pinata', 'manbald'."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", name).lower())


def read_concepts(tarball: Path) -> dict[str, Concept]:
    """Code points -> concept, in the order of emojibase; no flags, skin tones or components."""
    data, meta = read_json(tarball, "package/en/data.json", "package/meta/groups.json")
    concepts = {}
    for entry in sorted(data, key=lambda entry: entry.get("order", 0)):
        group = meta["groups"].get(str(entry.get("group")), "component")
        if group not in GROUPS_LEFT_OUT:
            code = code_points(entry["hexcode"])
            concepts[code] = Concept(code, entry["label"], tuple(entry.get("tags", ())), group)
    return concepts


def read_names(tarball: Path, concepts: Mapping[str, Concept]) -> dict[str, str]:
    """Squashed name -> code points: labels first, then Unicode names, then others' short codes."""
    names = {squash(concept.label): code for code, concept in concepts.items()}
    for code in concepts:
        if "-" not in code:
            names.setdefault(squash(unicodedata.name(chr(int(code, 16)), code)), code)
    folder = "package/en/shortcodes/"
    books = {name: json.loads(data) for name, data in members(
        tarball, lambda name: name.startswith(folder) and name.endswith(".json"))}  # fmt: skip
    for book in sorted(books):
        for hexcode, words in books[book].items():
            if (code := code_points(hexcode)) in concepts:
                for word in [words] if isinstance(words, str) else words:
                    names.setdefault(squash(word), code)
    return names


def match_files(names: Iterable[str], prefix: str, suffix: str, concepts: Iterable[str]) -> dict[str, str]:
    """Code points -> file, for files named by code point; joiners (200D) may be missing in the name."""
    found = {}
    for name in sorted(names):
        if name.startswith(prefix) and name.endswith(suffix):
            code = code_points(name[len(prefix) : -len(suffix)].rstrip("."))
            found[code.replace("-200d", "")] = name
    return {code: found[key] for code in concepts if (key := code.replace("-200d", "")) in found}


def match_icons(icons: Mapping[str, Any], chars: Mapping[str, str], names: Mapping[str, str],
                concepts: Iterable[str]) -> dict[str, str]:  # fmt: skip
    """Code points -> icon, by the package's chars.json, else by `names` (squashed name -> code points)."""
    known = {code_points(code): name for code, name in chars.items()}
    if not known:
        for name in icons:
            known.setdefault(names.get(squash(name), ""), name)
    return {code: known[code] for code in concepts if known.get(code) in icons}


def old_names(style: str, chars: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Squashed name -> code points that override the labels for one style; '' where a name misleads."""
    pairs = [pair.partition("=") for pair in (FX_NAMES if style == "fxemoji" else OLD_NAMES).split()]
    renamed = {squash(old): names[new] if new else "" for old, _, new in pairs}
    current = {} if style == "fxemoji" else {squash(name): code_points(code) for code, name in chars.items()}
    return {**current, **renamed}


def is_held_out(concept: str, style: str) -> bool:
    """True for the 5 % of pairs kept from training: a hash decides, so order and neighbours do not matter."""
    digest = hashlib.sha256(f"{concept}/{style}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64
