"""Synthetic catalogue, second table: lamps, armchairs, bed linen, kitchen things, camping things.

Owns these product types and their invented brands, written by hand in five languages. It draws no
product: `catalogue.generate_listings` does.
"""

from ellama_jax.corpus import catalogue_vocabulary as w
from ellama_jax.corpus.catalogue_vocabulary import Brand, ProductType, aspect, litres, words

LAMP = ProductType(
    key="lamp",
    department=w.HOME,
    group=words("Lamps|Lampen|Lampes|Lampade|Lámparas"),
    leaves=(
        words(
            "Desk Lamps|Schreibtischlampen|Lampes de bureau|Lampade da scrivania|"
            "Lámparas de escritorio"
        ),
        words(
            "Bedside Lamps|Nachttischlampen|Lampes de chevet|Lampade da comodino|"
            "Lámparas de mesilla"
        ),
        words("Garden Lamps|Gartenlampen|Lampes de jardin|Lampade da giardino|Lámparas de jardín"),
        words(
            "Kids' Lamps|Kinderlampen|Lampes pour enfants|Lampade per bambini|Lámparas infantiles"
        ),
    ),
    noun=words("Lamp|Lampe|Lampe|Lampada|Lámpara"),
    base_price=45,
    shown_aspects=(
        w.COLOR,
        aspect("Height|Höhe|Hauteur|Altezza|Altura", "25 cm", "35 cm", "45 cm", "60 cm"),
    ),
    habit_aspects=(
        aspect(
            "Shade|Lampenschirm|Abat-jour|Paralume|Pantalla",
            w.GLASS,
            w.FABRIC,
            "Paper|Papier|Papier|Carta|Papel",
            "Metal|Metall|Métal|Metallo|Metal",
            "Rattan|Rattan|Rotin|Rattan|Ratán",
        ),
        aspect("Socket|Fassung|Culot|Attacco|Casquillo", "E27", "E14", "GU10", "G9", "B22"),
    ),
    series_aspect=w.STYLE,
    brands=(
        Brand("Lumevik", 0, (3, 2), 1.0, {"Nyx": 2, "Sol": 3}),
        Brand("Sollano", 1, (0, 3), 2.4, {"Perla": 0, "Olmo": 1}),
        Brand("Candrille", 3, (2, 1), 0.4, {"Plume": 3, "Galet": 1}),
    ),
    sentences=(
        words(
            "Gives a soft, warm light that can be dimmed.|"
            "Spendet weiches, warmes Licht und ist dimmbar.|"
            "Diffuse une lumière douce et chaude, à intensité variable.|"
            "Diffonde una luce morbida e calda, regolabile.|"
            "Ofrece una luz suave y cálida, regulable."
        ),
    ),
)

ARMCHAIR = ProductType(
    key="armchair",
    department=w.HOME,
    group=words("Armchairs|Sessel|Fauteuils|Poltrone|Sillones"),
    leaves=(
        words(
            "Recliners|Relaxsessel|Fauteuils de relaxation|Poltrone reclinabili|"
            "Sillones reclinables"
        ),
        words("Wing Chairs|Ohrensessel|Fauteuils à oreilles|Poltrone bergère|Sillones orejeros"),
        words("Lounge Chairs|Loungesessel|Fauteuils lounge|Poltrone lounge|Sillones lounge"),
        words("Swivel Chairs|Drehsessel|Fauteuils pivotants|Poltrone girevoli|Sillones giratorios"),
    ),
    noun=words("Armchair|Sessel|Fauteuil|Poltrona|Sillón"),
    base_price=260,
    shown_aspects=(
        w.COLOR,
        aspect("Width|Breite|Largeur|Larghezza|Anchura", "65 cm", "70 cm", "75 cm", "80 cm"),
    ),
    habit_aspects=(
        aspect(
            "Upholstery|Bezug|Revêtement|Rivestimento|Tapizado",
            w.VELVET,
            w.LEATHER,
            w.LINEN,
            w.FAUX_LEATHER,
            w.WOOL,
        ),
        aspect(
            "Legs|Beine|Pieds|Gambe|Patas",
            "Oak|Eiche|Chêne|Rovere|Roble",
            "Beech|Buche|Hêtre|Faggio|Haya",
            "Walnut|Nussbaum|Noyer|Noce|Nogal",
            w.BRASS,
            w.STEEL,
        ),
    ),
    series_aspect=w.STYLE,
    brands=(
        Brand("Mobrelle", 2, (0, 3), 2.3, {"Margaux": 0, "Elise": 2}),
        Brand("Tannhof", 1, (4, 1), 1.0, {"Hirsch": 1, "Linde": 3}),
        Brand("Sedaro", 0, (3, 4), 0.45, {"Luna": 0, "Brio": 2}),
    ),
    sentences=(
        words(
            "Deep seat with a comfortable padded back.|"
            "Tiefe Sitzfläche mit bequem gepolsterter Rückenlehne.|"
            "Assise profonde et dossier rembourré confortable.|"
            "Seduta profonda con schienale imbottito e comodo.|"
            "Asiento profundo con un cómodo respaldo acolchado."
        ),
    ),
)

BED_LINEN = ProductType(
    key="bed-linen",
    department=w.HOME,
    group=words("Bedding|Bettwäsche|Linge de lit|Biancheria da letto|Ropa de cama"),
    leaves=(
        words(
            "Summer Bedding|Sommerbettwäsche|Linge de lit d'été|Biancheria estiva|"
            "Ropa de cama de verano"
        ),
        words(
            "Winter Bedding|Winterbettwäsche|Linge de lit d'hiver|Biancheria invernale|"
            "Ropa de cama de invierno"
        ),
        words(
            "Kids' Bedding|Kinderbettwäsche|Linge de lit pour enfants|"
            "Biancheria per bambini|Ropa de cama infantil"
        ),
        words(
            "Hotel Bedding|Hotelbettwäsche|Linge de lit d'hôtel|Biancheria da hotel|"
            "Ropa de cama de hotel"
        ),
    ),
    noun=words("Bedding Set|Bettwäsche-Set|Parure de lit|Completo letto|Juego de cama"),
    base_price=60,
    shown_aspects=(
        w.COLOR,
        aspect(
            w.SIZE_NAME.replace("Taglia", "Misura").replace("Talla", "Medida"),
            "135x200 cm",
            "155x220 cm",
            "200x200 cm",
            "240x220 cm",
        ),
    ),
    habit_aspects=(
        aspect(
            "Fabric|Stoff|Tissu|Tessuto|Tejido",
            "Satin|Satin|Satin|Raso|Satén",
            w.LINEN,
            "Flannel|Flanell|Flanelle|Flanella|Franela",
            "Percale|Perkal|Percale|Percalle|Percal",
            "Jersey|Jersey|Jersey|Jersey|Punto",
        ),
        aspect(
            "Pattern|Muster|Motif|Fantasia|Estampado",
            "Stripes|Streifen|Rayures|Righe|Rayas",
            "Checks|Karos|Carreaux|Quadri|Cuadros",
            "Flowers|Blumen|Fleurs|Fiori|Flores",
            "Dots|Punkte|Pois|Pois|Lunares",
            "Stars|Sterne|Étoiles|Stelle|Estrellas",
        ),
    ),
    series_aspect=aspect(
        w.CLOSURE_NAME,
        w.ZIP,
        w.BUTTONS,
        w.SNAPS,
        "Ties|Bindebänder|Liens|Lacci|Lazos",
    ),
    brands=(
        Brand("Dormessa", 0, (1, 0), 1.0, {"Brezza": 1, "Alba": 3}),
        Brand("Linvald", 1, (2, 1), 0.5, {"Frost": 0, "Tupfer": 2}),
        Brand("Coucherie", 3, (0, 2), 2.2, {"Minuit": 1, "Ivoire": 0}),
    ),
    sentences=(
        words(
            "Soft to the touch and washable at 60 degrees.|"
            "Weich auf der Haut und bei 60 Grad waschbar.|"
            "Douce au toucher et lavable à 60 degrés.|"
            "Morbido al tatto e lavabile a 60 gradi.|"
            "Suave al tacto y lavable a 60 grados."
        ),
    ),
)

COFFEE_MACHINE = ProductType(
    key="coffee-machine",
    department=w.KITCHEN,
    group=words("Coffee Machines|Kaffeemaschinen|Machines à café|Macchine da caffè|Cafeteras"),
    leaves=(
        words(
            "Espresso Machines|Espressomaschinen|Machines à expresso|Macchine per espresso|"
            "Cafeteras espresso"
        ),
        words(
            "Filter Coffee Machines|Filterkaffeemaschinen|Cafetières filtre|"
            "Macchine per caffè filtro|Cafeteras de goteo"
        ),
        words(
            "Capsule Machines|Kapselmaschinen|Machines à capsules|Macchine a capsule|"
            "Cafeteras de cápsulas"
        ),
        words(
            "Bean-to-Cup Machines|Kaffeevollautomaten|Machines à café en grains|"
            "Macchine automatiche|Cafeteras superautomáticas"
        ),
    ),
    noun=words("Coffee Machine|Kaffeemaschine|Machine à café|Macchina da caffè|Cafetera"),
    base_price=160,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Water tank|Wassertank|Réservoir d'eau|Serbatoio|Depósito de agua",
            *litres(0.8, 1.2, 1.5, 1.8),
        ),
    ),
    habit_aspects=(
        aspect(w.HOUSING_NAME, w.STAINLESS_STEEL, w.PLASTIC, w.ALUMINUM, w.GLASS, w.BRASS),
        w.COUNTRY,
    ),
    series_aspect=aspect(
        "Milk system|Milchsystem|Système à lait|Sistema latte|Sistema de leche",
        "Steam wand|Dampfdüse|Buse vapeur|Lancia vapore|Vaporizador",
        "Milk jug|Milchkanne|Pot à lait|Bricco|Jarra",
        "Frother|Aufschäumer|Mousseur|Montalatte|Espumador",
        "None|Ohne|Aucun|Nessuno|Ninguno",
    ),
    brands=(
        Brand("Cremalto", 0, (4, 0), 2.4, {"Duetto": 0, "Velluto": 2}),
        Brand("Brunnova", 3, (1, 3), 1.0, {"Matin": 1, "Porto": 3}),
        Brand("Kaffrik", 1, (3, 4), 0.4, {"Fika": 3, "Lagom": 2}),
    ),
    sentences=(
        words(
            "Ready to brew in less than a minute.|"
            "In weniger als einer Minute betriebsbereit.|"
            "Prête en moins d'une minute.|"
            "Pronta in meno di un minuto.|"
            "Lista en menos de un minuto."
        ),
    ),
)

KETTLE = ProductType(
    key="kettle",
    department=w.KITCHEN,
    group=words("Kettles|Wasserkocher|Bouilloires|Bollitori|Hervidores"),
    leaves=(
        words(
            "Travel Kettles|Reisewasserkocher|Bouilloires de voyage|Bollitori da viaggio|"
            "Hervidores de viaje"
        ),
        words(
            "Gooseneck Kettles|Schwanenhals-Wasserkocher|Bouilloires col de cygne|"
            "Bollitori a collo d'oca|Hervidores de cuello de cisne"
        ),
        words("Tea Kettles|Teekocher|Bouilloires à thé|Bollitori per tè|Hervidores para té"),
        words(
            "Office Kettles|Bürowasserkocher|Bouilloires de bureau|Bollitori da ufficio|"
            "Hervidores de oficina"
        ),
    ),
    noun=words("Kettle|Wasserkocher|Bouilloire|Bollitore|Hervidor"),
    base_price=50,
    shown_aspects=(w.COLOR, aspect(w.CAPACITY_NAME, *litres(0.8, 1, 1.5, 1.7))),
    habit_aspects=(
        aspect(w.MATERIAL_NAME, w.GLASS, w.STAINLESS_STEEL, w.CERAMIC, w.PLASTIC, w.COPPER),
        aspect(
            "Handle|Griff|Poignée|Manico|Asa",
            w.WOOD,
            w.CORK,
            w.SILICONE,
            w.BAMBOO,
            "Bakelite|Bakelit|Bakélite|Bachelite|Baquelita",
        ),
    ),
    series_aspect=aspect(w.POWER_NAME, "1000 W", "1500 W", "2200 W", "3000 W"),
    brands=(
        Brand("Sudmark", 3, (3, 2), 0.45, {"Rapid": 3, "Sieder": 2}),
        Brand("Teavolo", 2, (2, 3), 1.0, {"Oolong": 1, "Sencha": 0}),
        Brand("Boilwyn", 1, (4, 0), 2.3, {"Heron": 1, "Crane": 2}),
    ),
    sentences=(
        words(
            "Switches off by itself and keeps water warm.|"
            "Schaltet sich selbst ab und hält das Wasser warm.|"
            "S'arrête toute seule et garde l'eau au chaud.|"
            "Si spegne da solo e mantiene l'acqua calda.|"
            "Se apaga solo y mantiene el agua caliente."
        ),
    ),
)

FRYING_PAN = ProductType(
    key="frying-pan",
    department=w.KITCHEN,
    group=words("Pans|Pfannen|Poêles|Padelle|Sartenes"),
    leaves=(
        words("Grill Pans|Grillpfannen|Poêles à griller|Padelle per grigliare|Sartenes para asar"),
        words("Crêpe Pans|Crêpepfannen|Poêles à crêpes|Padelle per crêpe|Sartenes para crepes"),
        words("Fish Pans|Fischpfannen|Poêles à poisson|Padelle per pesce|Sartenes para pescado"),
        words(
            "Omelette Pans|Omelettpfannen|Poêles à omelette|Padelle per omelette|"
            "Sartenes para tortillas"
        ),
    ),
    noun=words("Pan|Pfanne|Poêle|Padella|Sartén"),
    base_price=40,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Diameter|Durchmesser|Diamètre|Diametro|Diámetro", "20 cm", "24 cm", "28 cm", "32 cm"
        ),
    ),
    habit_aspects=(
        aspect(
            w.MATERIAL_NAME,
            "Cast iron|Gusseisen|Fonte|Ghisa|Hierro fundido",
            w.ALUMINUM,
            w.COPPER,
            w.STAINLESS_STEEL,
            "Carbon steel|Carbonstahl|Acier au carbone|Acciaio al carbonio|Acero al carbono",
        ),
        aspect(
            "Coating|Beschichtung|Revêtement|Rivestimento|Revestimiento",
            w.CERAMIC,
            "Enamel|Emaille|Émail|Smalto|Esmalte",
            w.TITANIUM,
            "Granite|Granit|Granit|Granito|Granito",
            "None|Ohne|Aucun|Nessuno|Ninguno",
        ),
    ),
    series_aspect=aspect(w.HANDLE_NAME, w.WOOD, w.SILICONE, w.STEEL, w.BRASS),
    brands=(
        Brand("Pannavera", 3, (1, 0), 0.5, {"Rosetta": 1, "Bianca": 0}),
        Brand("Grausberg", 0, (0, 1), 1.0, {"Kohle": 2, "Esse": 0}),
        Brand("Sautelier", 1, (2, 4), 2.6, {"Bistro": 3, "Braise": 2}),
    ),
    sentences=(
        words(
            "Suitable for all cookers, including induction.|"
            "Für alle Herdarten geeignet, auch Induktion.|"
            "Convient à tous les feux, y compris l'induction.|"
            "Adatta a tutti i piani cottura, anche a induzione.|"
            "Apta para todo tipo de cocinas, incluida la inducción."
        ),
    ),
)

BACKPACK = ProductType(
    key="backpack",
    department=w.SPORTS,
    group=words("Backpacks|Rucksäcke|Sacs à dos|Zaini|Mochilas"),
    leaves=(
        words(
            "Hiking Backpacks|Wanderrucksäcke|Sacs à dos de randonnée|Zaini da trekking|"
            "Mochilas de senderismo"
        ),
        words(
            "School Backpacks|Schulrucksäcke|Sacs à dos scolaires|Zaini scolastici|"
            "Mochilas escolares"
        ),
        words(
            "Laptop Backpacks|Laptop-Rucksäcke|Sacs à dos pour ordinateur|Zaini porta PC|"
            "Mochilas para portátil"
        ),
        words(
            "Cycling Backpacks|Fahrradrucksäcke|Sacs à dos de vélo|Zaini da ciclismo|"
            "Mochilas de ciclismo"
        ),
    ),
    noun=words("Backpack|Rucksack|Sac à dos|Zaino|Mochila"),
    base_price=75,
    shown_aspects=(w.COLOR, aspect(w.CAPACITY_NAME, *litres(15, 20, 28, 40))),
    habit_aspects=(
        aspect(w.MATERIAL_NAME, w.NYLON, w.POLYESTER, w.CANVAS, w.LEATHER, w.COTTON),
        aspect(
            w.CLOSURE_NAME,
            w.ZIP,
            w.BUCKLE,
            "Drawstring|Kordelzug|Cordon|Coulisse|Cordón",
            "Roll-top|Rollverschluss|Enroulable|Arrotolabile|Enrollable",
            "Magnet|Magnet|Aimant|Magnete|Imán",
        ),
    ),
    series_aspect=aspect(
        "Target group|Zielgruppe|Public|Destinatari|Público",
        "Women|Damen|Femme|Donna|Mujer",
        "Men|Herren|Homme|Uomo|Hombre",
        "Unisex|Unisex|Unisexe|Unisex|Unisex",
        "Children|Kinder|Enfant|Bambini|Niños",
    ),
    brands=(
        Brand("Fjellros", 0, (0, 3), 1.0, {"Tind": 1, "Elv": 0}),
        Brand("Sacquier", 2, (3, 4), 2.4, {"Rivoli": 0, "Opera": 1}),
        Brand("Mochara", 1, (2, 2), 0.4, {"Patio": 3, "Recreo": 2}),
    ),
    sentences=(
        words(
            "Padded straps and a pocket for the bottle.|"
            "Gepolsterte Träger und ein Fach für die Flasche.|"
            "Bretelles rembourrées et poche pour la gourde.|"
            "Spallacci imbottiti e tasca per la borraccia.|"
            "Tirantes acolchados y bolsillo para la botella."
        ),
    ),
)

TENT = ProductType(
    key="tent",
    department=w.SPORTS,
    group=words("Tents|Zelte|Tentes|Tende|Tiendas de campaña"),
    leaves=(
        words("Dome Tents|Kuppelzelte|Tentes dôme|Tende a cupola|Tiendas de cúpula"),
        words("Tunnel Tents|Tunnelzelte|Tentes tunnel|Tende a tunnel|Tiendas de túnel"),
        words("Roof Tents|Dachzelte|Tentes de toit|Tende da tetto|Tiendas de techo"),
        words("Beach Tents|Strandzelte|Tentes de plage|Tende da spiaggia|Tiendas de playa"),
    ),
    noun=words("Tent|Zelt|Tente|Tenda|Tienda de campaña"),
    base_price=190,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Sleeps|Platz für|Places|Posti|Plazas",
            *(
                f"{n} people|{n} Personen|{n} personnes|{n} persone|{n} personas"
                for n in (2, 3, 4, 6)
            ),
        ),
    ),
    habit_aspects=(
        aspect(
            w.MATERIAL_NAME,
            w.POLYESTER,
            w.COTTON,
            w.NYLON,
            w.CANVAS,
            "Polycotton|Polycotton|Polycoton|Policotone|Polialgodón",
        ),
        aspect(
            "Poles|Gestänge|Arceaux|Paleria|Varillas",
            w.ALUMINUM,
            w.STEEL,
            w.BAMBOO,
            "Fiberglass|Glasfaser|Fibre de verre|Fibra di vetro|Fibra de vidrio",
            "Carbon|Carbon|Carbone|Carbonio|Carbono",
        ),
    ),
    series_aspect=aspect(
        "Season|Jahreszeit|Saison|Stagione|Temporada",
        "Summer|Sommer|Été|Estate|Verano",
        "Winter|Winter|Hiver|Inverno|Invierno",
        "Spring|Frühling|Printemps|Primavera|Primavera",
        "All year|Ganzjährig|Toute l'année|Tutto l'anno|Todo el año",
    ),
    brands=(
        Brand("Campaluna", 3, (2, 3), 0.4, {"Duna": 0, "Marea": 2}),
        Brand("Zeltmark", 1, (4, 1), 1.0, {"Kamp": 3, "Wacht": 1}),
        Brand("Yurtano", 2, (1, 2), 2.4, {"Steppe": 1, "Altai": 3}),
    ),
    sentences=(
        words(
            "Pitched in ten minutes, packed in five.|"
            "In zehn Minuten aufgebaut, in fünf verpackt.|"
            "Montée en dix minutes, rangée en cinq.|"
            "Si monta in dieci minuti e si ripone in cinque.|"
            "Se monta en diez minutos y se guarda en cinco."
        ),
    ),
)

HOME_KITCHEN_AND_SPORTS = (
    LAMP,
    ARMCHAIR,
    BED_LINEN,
    COFFEE_MACHINE,
    KETTLE,
    FRYING_PAN,
    BACKPACK,
    TENT,
)
