"""Tables of simple facts that the chat data is made from, written for this project."""

from __future__ import annotations

CAPITALS = """
Afghanistan=Kabul=Asia; Albania=Tirana=Europe; Algeria=Algiers=Africa; Andorra=Andorra la Vella=Europe;
Angola=Luanda=Africa; Argentina=Buenos Aires=South America; Armenia=Yerevan=Asia; Australia=Canberra=Oceania;
Austria=Vienna=Europe; Azerbaijan=Baku=Asia; the Bahamas=Nassau=North America; Bahrain=Manama=Asia;
Bangladesh=Dhaka=Asia; Barbados=Bridgetown=North America; Belarus=Minsk=Europe; Belgium=Brussels=Europe;
Belize=Belmopan=North America; Benin=Porto-Novo=Africa; Bhutan=Thimphu=Asia; Bosnia and Herzegovina=Sarajevo=Europe;
Botswana=Gaborone=Africa; Brazil=Brasília=South America; Brunei=Bandar Seri Begawan=Asia; Bulgaria=Sofia=Europe;
Burkina Faso=Ouagadougou=Africa; Cambodia=Phnom Penh=Asia; Cameroon=Yaoundé=Africa; Canada=Ottawa=North America;
Cape Verde=Praia=Africa; the Central African Republic=Bangui=Africa; Chad=N'Djamena=Africa;
Chile=Santiago=South America; China=Beijing=Asia; Colombia=Bogotá=South America; Costa Rica=San José=North America;
Croatia=Zagreb=Europe; Cuba=Havana=North America; Cyprus=Nicosia=Europe; the Czech Republic=Prague=Europe;
Denmark=Copenhagen=Europe; Djibouti=Djibouti=Africa; Dominica=Roseau=North America;
the Dominican Republic=Santo Domingo=North America; Ecuador=Quito=South America; Egypt=Cairo=Africa;
El Salvador=San Salvador=North America; Eritrea=Asmara=Africa; Estonia=Tallinn=Europe; Ethiopia=Addis Ababa=Africa;
Fiji=Suva=Oceania; Finland=Helsinki=Europe; France=Paris=Europe; Gabon=Libreville=Africa; Gambia=Banjul=Africa;
Georgia=Tbilisi=Asia; Germany=Berlin=Europe; Ghana=Accra=Africa; Greece=Athens=Europe;
Grenada=St. George's=North America; Guatemala=Guatemala City=North America; Guinea=Conakry=Africa;
Guyana=Georgetown=South America; Haiti=Port-au-Prince=North America; Honduras=Tegucigalpa=North America;
Hungary=Budapest=Europe; Iceland=Reykjavik=Europe; India=New Delhi=Asia; Indonesia=Jakarta=Asia; Iran=Tehran=Asia;
Iraq=Baghdad=Asia; Ireland=Dublin=Europe; Italy=Rome=Europe; Jamaica=Kingston=North America; Japan=Tokyo=Asia;
Jordan=Amman=Asia; Kazakhstan=Astana=Asia; Kenya=Nairobi=Africa; Kuwait=Kuwait City=Asia; Kyrgyzstan=Bishkek=Asia;
Laos=Vientiane=Asia; Latvia=Riga=Europe; Lebanon=Beirut=Asia; Lesotho=Maseru=Africa; Liberia=Monrovia=Africa;
Libya=Tripoli=Africa; Liechtenstein=Vaduz=Europe; Lithuania=Vilnius=Europe; Luxembourg=Luxembourg City=Europe;
Madagascar=Antananarivo=Africa; Malawi=Lilongwe=Africa; Malaysia=Kuala Lumpur=Asia; the Maldives=Malé=Asia;
Mali=Bamako=Africa; Malta=Valletta=Europe; Mauritania=Nouakchott=Africa; Mauritius=Port Louis=Africa;
Mexico=Mexico City=North America; Moldova=Chișinău=Europe; Monaco=Monaco=Europe; Mongolia=Ulaanbaatar=Asia;
Montenegro=Podgorica=Europe; Morocco=Rabat=Africa; Mozambique=Maputo=Africa; Myanmar=Naypyidaw=Asia;
Namibia=Windhoek=Africa; Nepal=Kathmandu=Asia; the Netherlands=Amsterdam=Europe; New Zealand=Wellington=Oceania;
Nicaragua=Managua=North America; Niger=Niamey=Africa; Nigeria=Abuja=Africa; North Korea=Pyongyang=Asia;
North Macedonia=Skopje=Europe; Norway=Oslo=Europe; Oman=Muscat=Asia; Pakistan=Islamabad=Asia;
Panama=Panama City=North America; Papua New Guinea=Port Moresby=Oceania; Paraguay=Asunción=South America;
Peru=Lima=South America; the Philippines=Manila=Asia; Poland=Warsaw=Europe; Portugal=Lisbon=Europe; Qatar=Doha=Asia;
Romania=Bucharest=Europe; Russia=Moscow=Europe; Rwanda=Kigali=Africa; Samoa=Apia=Oceania;
Saudi Arabia=Riyadh=Asia; Senegal=Dakar=Africa; Serbia=Belgrade=Europe; Seychelles=Victoria=Africa;
Sierra Leone=Freetown=Africa; Singapore=Singapore=Asia; Slovakia=Bratislava=Europe; Slovenia=Ljubljana=Europe;
Somalia=Mogadishu=Africa; South Korea=Seoul=Asia; South Sudan=Juba=Africa; Spain=Madrid=Europe; Sudan=Khartoum=Africa;
Suriname=Paramaribo=South America; Sweden=Stockholm=Europe; Switzerland=Bern=Europe; Syria=Damascus=Asia;
Taiwan=Taipei=Asia; Tajikistan=Dushanbe=Asia; Tanzania=Dodoma=Africa; Thailand=Bangkok=Asia; Togo=Lomé=Africa;
Tonga=Nukuʻalofa=Oceania; Trinidad and Tobago=Port of Spain=North America; Tunisia=Tunis=Africa; Turkey=Ankara=Asia;
Turkmenistan=Ashgabat=Asia; Uganda=Kampala=Africa; Ukraine=Kyiv=Europe; the United Arab Emirates=Abu Dhabi=Asia;
the United Kingdom=London=Europe; the United States=Washington, D.C.=North America; Uruguay=Montevideo=South America;
Uzbekistan=Tashkent=Asia; Vanuatu=Port Vila=Oceania; Venezuela=Caracas=South America; Vietnam=Hanoi=Asia;
Yemen=Sana'a=Asia; Zambia=Lusaka=Africa; Zimbabwe=Harare=Africa
"""
"""country = capital = continent"""

FAMILIAR = """France; Germany; Spain; Italy; Japan; China; South Korea; Egypt; Russia; Canada; Portugal; Greece;
Austria; Poland; Sweden; Norway; Brazil; Mexico; Morocco; Saudi Arabia; Thailand; Ireland; the United Kingdom;
the United States; India; Argentina; Australia; the Netherlands; Belgium; Switzerland"""

ELEMENTS = """
hydrogen=H=1; helium=He=2; lithium=Li=3; beryllium=Be=4; boron=B=5; carbon=C=6; nitrogen=N=7; oxygen=O=8;
fluorine=F=9; neon=Ne=10; sodium=Na=11; magnesium=Mg=12; aluminium=Al=13; silicon=Si=14; phosphorus=P=15; sulfur=S=16;
chlorine=Cl=17; argon=Ar=18; potassium=K=19; calcium=Ca=20; titanium=Ti=22; chromium=Cr=24; manganese=Mn=25; iron=Fe=26;
cobalt=Co=27; nickel=Ni=28; copper=Cu=29; zinc=Zn=30; arsenic=As=33; bromine=Br=35; krypton=Kr=36; silver=Ag=47;
tin=Sn=50; iodine=I=53; xenon=Xe=54; tungsten=W=74; platinum=Pt=78; gold=Au=79; mercury=Hg=80; lead=Pb=82; radon=Rn=86;
radium=Ra=88; uranium=U=92
"""
"""element = symbol = atomic number"""

CREATURES = """
C. elegans=a tiny roundworm that lives in soil and is studied in many laboratories; an octopus=a sea animal with eight
arms and three hearts; a penguin=a bird that cannot fly but swims very well; a bat=a mammal that flies at night and
finds its way by sound; a whale=a large mammal that lives in the sea; a spider=a small animal with eight legs that
often spins a web; a bee=an insect that collects nectar and makes honey; a frog=an amphibian that lives near water and
catches insects; a kangaroo=a marsupial from Australia that moves by hopping; an owl=a bird that hunts at night; a
shark=a fish with a skeleton of cartilage; a salmon=a fish that returns to its river to lay eggs; a tortoise=a slow
reptile with a hard shell; an ant=an insect that lives in large colonies; a camel=a mammal of dry lands that stores
fat in its hump; a fox=a small wild relative of the dog; a horse=a large mammal that people have ridden for thousands
of years; a mouse=a small rodent with a long tail; an eagle=a large bird of prey with very sharp eyes; a crocodile=a
large reptile that lives in rivers; a butterfly=an insect with large coloured wings; a dolphin=a sea mammal that lives
in groups and finds food by sound; an elephant=the largest animal that lives on land; a giraffe=the tallest animal in
the world; a snail=a slow animal that carries a shell; a jellyfish=a soft sea animal that drifts with the current;
yeast=a small fungus that makes bread rise; a mushroom=the part of a fungus that carries its spores; an oak=a tree
that grows acorns; a cactus=a plant that stores water and grows in dry places; E. coli=a bacterium that lives in the
gut; a fruit fly=a small insect that is often studied by biologists
"""
"""creature = what it is"""

COUNTS = "days=a week=7; months=a year=12; hours=a day=24; minutes=an hour=60; seconds=a minute=60; \
days=a leap year=366; years=a century=100; years=a decade=10; metres=a kilometre=1000; grams=a kilogram=1000; \
bits=a byte=8; degrees=a circle=360; sides=a hexagon=6; sides=a triangle=3; players=a football team=11"

US_CITIES = """New York; Los Angeles; Chicago; Houston; Phoenix; Philadelphia; San Antonio; San Diego; Dallas; Austin;
San Francisco; Seattle; Denver; Boston; Nashville; Detroit; Portland; Las Vegas; Memphis; Baltimore; Milwaukee; Miami;
Atlanta; Oakland; Minneapolis; New Orleans; Cleveland; Tampa; Honolulu; Anchorage; Pittsburgh; Cincinnati; Orlando;
St. Louis; Kansas City; Sacramento; Salt Lake City; Charlotte; Columbus; Indianapolis"""

OTHER_CITIES = """Munich; Hamburg; Cologne; Frankfurt; Lyon; Marseille; Nice; Barcelona; Valencia; Seville; Milan;
Naples; Turin; Florence; Venice; Zurich; Geneva; Basel; Manchester; Liverpool; Edinburgh; Glasgow; Dublin; Rotterdam;
Antwerp; Gothenburg; Bergen; Krakow; Porto; Istanbul; Dubai; Mumbai; Kolkata; Chennai; Karachi; Lahore; Shanghai;
Shenzhen; Hong Kong; Osaka; Kyoto; Sapporo; Busan; Sydney; Melbourne; Brisbane; Perth; Auckland; Toronto; Montreal;
Vancouver; Calgary; Rio de Janeiro; São Paulo; Lagos; Johannesburg; Cape Town; Casablanca; Alexandria; Salzburg"""

NAMES = """Alice; Bruno; Chen; Diana; Elif; Farid; Grace; Hugo; Ines; Jonas; Kofi; Lena; Maria; Nadia; Omar; Priya;
Rosa; Sam; Tomas; Yuki"""

TRANSLATED = {
    "German": (
        ("Was ist die Hauptstadt von {}?", "Die Hauptstadt von {} ist {}."),
        "Frankreich=Paris; Deutschland=Berlin; Spanien=Madrid; Italien=Rom; Japan=Tokio; China=Peking; Südkorea=Seoul; "
        "Ägypten=Kairo; Russland=Moskau; Kanada=Ottawa; Portugal=Lissabon; Griechenland=Athen; Österreich=Wien; "
        "Polen=Warschau; Schweden=Stockholm; Norwegen=Oslo; Brasilien=Brasília; Mexiko=Mexiko-Stadt; Marokko=Rabat; "
        "Saudi-Arabien=Riad; Thailand=Bangkok; Irland=Dublin",
    ),
    "French": (
        ("Quelle est la capitale {} ?", "La capitale {} est {}."),
        "de la France=Paris; de l'Allemagne=Berlin; de l'Espagne=Madrid; de l'Italie=Rome; du Japon=Tokyo; "
        "de la Chine=Pékin; de la Corée du Sud=Séoul; "
        "de l'Égypte=Le Caire; de la Russie=Moscou; du Canada=Ottawa; du Portugal=Lisbonne; "
        "de la Grèce=Athènes; de l'Autriche=Vienne; de la Pologne=Varsovie; de la Suède=Stockholm; de la Norvège=Oslo; "
        "du Brésil=Brasília; du Mexique=Mexico; du Maroc=Rabat; de l'Arabie saoudite=Riyad; de la Thaïlande=Bangkok; "
        "de l'Irlande=Dublin",
    ),
    "Spanish": (
        ("¿Cuál es la capital de {}?", "La capital de {} es {}."),
        "Francia=París; Alemania=Berlín; España=Madrid; Italia=Roma; Japón=Tokio; China=Pekín; Corea del Sur=Seúl; "
        "Egipto=El Cairo; Rusia=Moscú; Canadá=Ottawa; Portugal=Lisboa; Grecia=Atenas; Austria=Viena; Polonia=Varsovia; "
        "Suecia=Estocolmo; Noruega=Oslo; Brasil=Brasilia; México=Ciudad de México; Marruecos=Rabat; "
        "Arabia Saudita=Riad; Tailandia=Bangkok; Irlanda=Dublín",
    ),
    "Japanese": (
        ("{}の首都はどこですか？", "{}の首都は{}です。"),
        "フランス=パリ; ドイツ=ベルリン; スペイン=マドリード; イタリア=ローマ; 日本=東京; 中国=北京; 韓国=ソウル; "
        "エジプト=カイロ; ロシア=モスクワ; カナダ=オタワ; ポルトガル=リスボン; ギリシャ=アテネ; オーストリア=ウィーン; "
        "ポーランド=ワルシャワ; スウェーデン=ストックホルム; ノルウェー=オスロ; ブラジル=ブラジリア; "
        "メキシコ=メキシコシティ; モロッコ=ラバト; サウジアラビア=リヤド; タイ=バンコク; アイルランド=ダブリン",
    ),
    "Korean": (
        ("{}의 수도는 어디인가요?", "{}의 수도는 {}입니다."),
        "프랑스=파리; 독일=베를린; 스페인=마드리드; 이탈리아=로마; 일본=도쿄; 중국=베이징; 한국=서울; 이집트=카이로; "
        "러시아=모스크바; 캐나다=오타와; 포르투갈=리스본; 그리스=아테네; 오스트리아=빈; 폴란드=바르샤바; "
        "스웨덴=스톡홀름; 노르웨이=오슬로; 브라질=브라질리아; 멕시코=멕시코시티; 모로코=라바트; "
        "사우디아라비아=리야드; 태국=방콕; 아일랜드=더블린",
    ),
    "Chinese": (
        ("{}的首都是哪里？", "{}的首都是{}。"),
        "法国=巴黎; 德国=柏林; 西班牙=马德里; 意大利=罗马; 日本=东京; 中国=北京; 韩国=首尔; 埃及=开罗; 俄罗斯=莫斯科; "
        "加拿大=渥太华; 葡萄牙=里斯本; 希腊=雅典; 奥地利=维也纳; 波兰=华沙; 瑞典=斯德哥尔摩; 挪威=奥斯陆; "
        "巴西=巴西利亚; 墨西哥=墨西哥城; 摩洛哥=拉巴特; 沙特阿拉伯=利雅得; 泰国=曼谷; 爱尔兰=都柏林",
    ),
    "Arabic": (
        ("ما هي عاصمة {}؟", "عاصمة {} هي {}."),
        "فرنسا=باريس; ألمانيا=برلين; إسبانيا=مدريد; إيطاليا=روما; اليابان=طوكيو; الصين=بكين; كوريا الجنوبية=سول; "
        "مصر=القاهرة; روسيا=موسكو; كندا=أوتاوا; البرتغال=لشبونة; اليونان=أثينا; النمسا=فيينا; بولندا=وارسو; "
        "السويد=ستوكهولم; النرويج=أوسلو; البرازيل=برازيليا; المكسيك=مكسيكو سيتي; المغرب=الرباط; "
        "السعودية=الرياض; تايلاند=بانكوك; أيرلندا=دبلن",
    ),
}
"""language -> ((question, answer), "country = capital" pairs)"""


def rows(table: str) -> list[tuple[str, ...]]:
    """Split one of the tables above into its rows and fields."""
    return [tuple(" ".join(field.split()) for field in row.split("=")) for row in table.split(";") if row.strip()]


def words(table: str) -> list[str]:
    """The rows of a table that has one field."""
    return [word for (word,) in rows(table)]
