"""Synthetic catalogue, first table: jackets, shoes, watches, headphones, speakers, power banks.

Owns these product types and their invented brands, written by hand in five languages. It draws no
product: `catalogue.generate_listings` does.
"""

from ellama_jax.corpus import catalogue_vocabulary as w
from ellama_jax.corpus.catalogue_vocabulary import Brand, ProductType, aspect, words

JACKET = ProductType(
    key="jacket",
    department=w.CLOTHING,
    group=words("Jackets|Jacken|Vestes|Giacche|Chaquetas"),
    leaves=(
        words("Rain Jackets|Regenjacken|Vestes de pluie|Giacche antipioggia|Chaquetas de lluvia"),
        words("Winter Jackets|Winterjacken|Vestes d'hiver|Giacche invernali|Chaquetas de invierno"),
        words("Ski Jackets|Skijacken|Vestes de ski|Giacche da sci|Chaquetas de esquí"),
        words("Cycling Jackets|Radjacken|Vestes de vélo|Giacche da ciclismo|Chaquetas de ciclismo"),
    ),
    noun=words("Jacket|Jacke|Veste|Giacca|Chaqueta"),
    base_price=90,
    shown_aspects=(w.COLOR, aspect(w.SIZE_NAME, "S", "M", "L", "XL")),
    habit_aspects=(
        aspect(w.MATERIAL_NAME, w.POLYESTER, w.WOOL, w.COTTON, w.NYLON, w.LEATHER),
        aspect(
            w.CLOSURE_NAME,
            w.ZIP,
            w.BUTTONS,
            w.SNAPS,
            w.BUCKLE,
            "Toggles|Knebelknöpfe|Brandebourgs|Alamari|Alamares",
        ),
    ),
    series_aspect=aspect(
        "Fit|Passform|Coupe|Vestibilità|Corte",
        "Slim|Schmal|Ajustée|Aderente|Ajustado",
        "Regular|Normal|Droite|Regolare|Recto",
        "Loose|Weit|Ample|Ampia|Holgado",
        "Short|Kurz|Courte|Corta|Corto",
    ),
    brands=(
        Brand("Norvalen", 0, (3, 2), 1.0, {"Aster": 2, "Fjord": 0}),
        Brand("Kestrup", 1, (1, 4), 2.3, {"Halde": 1, "Brome": 3}),
        Brand("Brisatto", 3, (0, 0), 0.45, {"Vento": 0, "Lido": 1}),
    ),
    sentences=(
        words(
            "Keeps you warm and dry on long days outside.|"
            "Hält an langen Tagen im Freien warm und trocken.|"
            "Garde au chaud et au sec pendant les longues journées dehors.|"
            "Tiene caldi e asciutti nelle lunghe giornate all'aperto.|"
            "Mantiene el calor y protege de la humedad en los días largos al aire libre."
        ),
        words(
            "Two inside pockets and a removable hood.|"
            "Zwei Innentaschen und eine abnehmbare Kapuze.|"
            "Deux poches intérieures et une capuche amovible.|"
            "Due tasche interne e un cappuccio rimovibile.|"
            "Dos bolsillos interiores y capucha desmontable."
        ),
    ),
)

SHOES = ProductType(
    key="shoes",
    department=w.CLOTHING,
    group=words(
        "Sports Shoes|Sportschuhe|Chaussures de sport|Scarpe sportive|Zapatillas deportivas"
    ),
    leaves=(
        words("Running Shoes|Laufschuhe|Chaussures de course|Scarpe da corsa|Zapatillas de correr"),
        words(
            "Hiking Shoes|Wanderschuhe|Chaussures de randonnée|Scarpe da trekking|"
            "Zapatillas de senderismo"
        ),
        words(
            "Tennis Shoes|Tennisschuhe|Chaussures de tennis|Scarpe da tennis|Zapatillas de tenis"
        ),
        words(
            "Gym Shoes|Fitnessschuhe|Chaussures de fitness|Scarpe da palestra|"
            "Zapatillas de gimnasio"
        ),
    ),
    noun=words(
        "Sports Shoes|Sportschuhe|Chaussures de sport|Scarpe sportive|Zapatillas deportivas"
    ),
    base_price=80,
    shown_aspects=(
        w.COLOR,
        aspect("Size|Größe|Pointure|Numero|Talla", "EU 38", "EU 40", "EU 42", "EU 44"),
    ),
    habit_aspects=(
        aspect(
            "Upper|Obermaterial|Tige|Tomaia|Exterior",
            "Mesh|Mesh|Mesh|Mesh|Malla",
            "Suede|Wildleder|Daim|Camoscio|Ante",
            w.LEATHER,
            w.CANVAS,
            w.WOOL,
        ),
        aspect(
            "Sole|Sohle|Semelle|Suola|Suela",
            "Rubber|Gummi|Caoutchouc|Gomma|Goma",
            "EVA foam|EVA-Schaum|Mousse EVA|Schiuma EVA|Espuma EVA",
            w.CORK,
            "Latex|Latex|Latex|Lattice|Látex",
            "Polyurethane|Polyurethan|Polyuréthane|Poliuretano|Poliuretano",
        ),
    ),
    series_aspect=aspect(
        "Width|Weite|Largeur|Larghezza|Ancho",
        "Narrow|Schmal|Étroite|Stretta|Estrecho",
        "Regular|Normal|Standard|Normale|Normal",
        "Wide|Weit|Large|Larga|Amplio",
        "Extra wide|Extraweit|Très large|Extra larga|Extra amplio",
    ),
    brands=(
        Brand("Velotani", 0, (0, 2), 1.0, {"Corsa": 0, "Lumo": 2}),
        Brand("Dornbusk", 1, (2, 4), 2.2, {"Granit": 3, "Pfad": 1}),
        Brand("Quillaro", 3, (3, 1), 0.5, {"Tempo": 2, "Salto": 0}),
    ),
    sentences=(
        words(
            "Light, breathable and comfortable from the first step.|"
            "Leicht, atmungsaktiv und vom ersten Schritt an bequem.|"
            "Légères, respirantes et confortables dès le premier pas.|"
            "Leggere, traspiranti e comode fin dal primo passo.|"
            "Ligeras, transpirables y cómodas desde el primer paso."
        ),
        words(
            "With a removable insole and reinforced heel.|"
            "Mit herausnehmbarer Einlegesohle und verstärkter Ferse.|"
            "Avec semelle intérieure amovible et talon renforcé.|"
            "Con soletta estraibile e tallone rinforzato.|"
            "Con plantilla extraíble y talón reforzado."
        ),
    ),
)

WATCH = ProductType(
    key="watch",
    department=w.CLOTHING,
    group=words("Watches|Armbanduhren|Montres|Orologi|Relojes"),
    leaves=(
        words("Diving Watches|Taucheruhren|Montres de plongée|Orologi subacquei|Relojes de buceo"),
        words(
            "Pilot Watches|Fliegeruhren|Montres d'aviateur|Orologi da aviatore|Relojes de aviador"
        ),
        words("Dress Watches|Elegante Uhren|Montres habillées|Orologi eleganti|Relojes de vestir"),
        words("Sports Watches|Sportuhren|Montres de sport|Orologi sportivi|Relojes deportivos"),
    ),
    noun=words("Watch|Armbanduhr|Montre|Orologio|Reloj"),
    base_price=180,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Diameter|Durchmesser|Diamètre|Diametro|Diámetro", "36 mm", "39 mm", "41 mm", "44 mm"
        ),
    ),
    habit_aspects=(
        aspect(
            "Strap|Armband|Bracelet|Cinturino|Correa",
            w.LEATHER,
            w.STAINLESS_STEEL,
            w.SILICONE,
            w.TITANIUM,
            w.NYLON,
        ),
        aspect(
            "Movement|Uhrwerk|Mouvement|Movimento|Movimiento",
            "Automatic|Automatik|Automatique|Automatico|Automático",
            "Quartz|Quarz|Quartz|Quarzo|Cuarzo",
            "Solar|Solar|Solaire|Solare|Solar",
            "Hand-wound|Handaufzug|Manuel|Manuale|Manual",
            "Radio-controlled|Funk|Radiopiloté|Radiocontrollato|Radiocontrolado",
        ),
    ),
    series_aspect=aspect(
        "Water resistance|Wasserdichtigkeit|Étanchéité|Impermeabilità|Resistencia al agua",
        "3 bar",
        "5 bar",
        "10 bar",
        "30 bar",
    ),
    brands=(
        Brand("Aurigant", 2, (3, 3), 3.0, {"Vesper": 1, "Orlo": 0}),
        Brand("Belmontier", 1, (0, 2), 1.0, {"Zenobia": 2, "Marchal": 1}),
        Brand("Tickard", 0, (2, 1), 0.35, {"Reef": 3, "Buoy": 2}),
    ),
    sentences=(
        words(
            "Comes with a two-year warranty and a gift box.|"
            "Mit zwei Jahren Garantie und Geschenkbox.|"
            "Livrée avec deux ans de garantie et un coffret cadeau.|"
            "Con due anni di garanzia e confezione regalo.|"
            "Con dos años de garantía y caja de regalo."
        ),
    ),
)

HEADPHONES = ProductType(
    key="headphones",
    department=w.ELECTRONICS,
    group=words("Headphones|Kopfhörer|Casques audio|Cuffie|Auriculares"),
    leaves=(
        words(
            "Gaming Headphones|Gaming-Kopfhörer|Casques gaming|Cuffie da gaming|Auriculares gaming"
        ),
        words(
            "Studio Headphones|Studiokopfhörer|Casques de studio|Cuffie da studio|"
            "Auriculares de estudio"
        ),
        words(
            "Sports Headphones|Sportkopfhörer|Casques de sport|Cuffie sportive|"
            "Auriculares deportivos"
        ),
        words(
            "Kids' Headphones|Kinderkopfhörer|Casques pour enfants|Cuffie per bambini|"
            "Auriculares infantiles"
        ),
    ),
    noun=words("Headphones|Kopfhörer|Casque audio|Cuffie|Auriculares"),
    base_price=85,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Impedance|Impedanz|Impédance|Impedenza|Impedancia",
            "16 ohms|16 Ohm|16 ohms|16 ohm|16 ohmios",
            "32 ohms|32 Ohm|32 ohms|32 ohm|32 ohmios",
            "64 ohms|64 Ohm|64 ohms|64 ohm|64 ohmios",
            "80 ohms|80 Ohm|80 ohms|80 ohm|80 ohmios",
        ),
    ),
    habit_aspects=(
        aspect(
            "Connection|Verbindung|Connexion|Connessione|Conexión",
            "Bluetooth",
            "USB-C",
            "2.4 GHz radio|Funk 2,4 GHz|Radio 2,4 GHz|Radio 2,4 GHz|Radio 2,4 GHz",
            "Audio jack|Klinke|Prise jack|Jack audio|Clavija jack",
            "Infrared|Infrarot|Infrarouge|Infrarossi|Infrarrojos",
        ),
        aspect(
            "Ear pads|Ohrpolster|Coussinets|Cuscinetti|Almohadillas",
            w.VELVET,
            w.LEATHER,
            w.SILICONE,
            w.COTTON,
            "Memory foam|Memory-Schaum|Mousse à mémoire|Memory foam|Espuma viscoelástica",
        ),
    ),
    series_aspect=aspect(
        "Battery life|Akkulaufzeit|Autonomie|Autonomia|Autonomía",
        "12 h",
        "20 h",
        "35 h",
        "60 h",
    ),
    brands=(
        Brand("Auralto", 1, (1, 0), 2.4, {"Sonata": 1, "Cadenza": 3}),
        Brand("Klangfeld", 0, (2, 4), 1.0, {"Echo": 2, "Pulse": 0}),
        Brand("Murmelo", 2, (0, 2), 0.4, {"Pepito": 0, "Chico": 1}),
    ),
    sentences=(
        words(
            "Folds flat and comes with a travel case.|"
            "Flach faltbar und mit Reiseetui.|"
            "Se plie à plat et s'accompagne d'un étui de voyage.|"
            "Si ripiegano e includono una custodia da viaggio.|"
            "Se pliegan e incluyen un estuche de viaje."
        ),
    ),
)

SPEAKER = ProductType(
    key="speaker",
    department=w.ELECTRONICS,
    group=words("Speakers|Lautsprecher|Enceintes|Altoparlanti|Altavoces"),
    leaves=(
        words(
            "Outdoor Speakers|Outdoor-Lautsprecher|Enceintes d'extérieur|"
            "Altoparlanti da esterno|Altavoces de exterior"
        ),
        words(
            "Shower Speakers|Duschlautsprecher|Enceintes de douche|Altoparlanti da doccia|"
            "Altavoces de ducha"
        ),
        words(
            "Bookshelf Speakers|Regallautsprecher|Enceintes d'étagère|"
            "Altoparlanti da scaffale|Altavoces de estantería"
        ),
        words(
            "Party Speakers|Partylautsprecher|Enceintes de soirée|Altoparlanti da festa|"
            "Altavoces para fiestas"
        ),
    ),
    noun=words("Speaker|Lautsprecher|Enceinte|Altoparlante|Altavoz"),
    base_price=70,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Battery life|Akkulaufzeit|Autonomie|Autonomia|Autonomía", "8 h", "12 h", "16 h", "24 h"
        ),
    ),
    habit_aspects=(
        aspect(w.HOUSING_NAME, w.FABRIC, w.ALUMINUM, w.WOOD, w.PLASTIC, w.BAMBOO),
        aspect(
            "Protection|Schutzart|Protection|Protezione|Protección",
            "IPX4",
            "IPX5",
            "IPX7",
            "IP54",
            "IP67",
        ),
    ),
    series_aspect=aspect(w.POWER_NAME, "10 W", "20 W", "40 W", "60 W"),
    brands=(
        Brand("Boomari", 3, (0, 1), 0.45, {"Conga": 1, "Mambo": 3}),
        Brand("Resonik", 0, (1, 4), 1.0, {"Atlas": 2, "Pico": 0}),
        Brand("Tonhalden", 2, (2, 3), 2.5, {"Forte": 3, "Legato": 2}),
    ),
    sentences=(
        words(
            "Two units can be paired for stereo sound.|"
            "Zwei Geräte lassen sich für Stereoklang koppeln.|"
            "Deux appareils peuvent être jumelés pour un son stéréo.|"
            "Due unità si possono abbinare per un suono stereo.|"
            "Se pueden enlazar dos unidades para lograr sonido estéreo."
        ),
    ),
)

POWER_BANK = ProductType(
    key="power-bank",
    department=w.ELECTRONICS,
    group=words("Power Banks|Powerbanks|Batteries externes|Power bank|Baterías externas"),
    leaves=(
        words(
            "Solar Power Banks|Solar-Powerbanks|Batteries externes solaires|"
            "Power bank solari|Baterías externas solares"
        ),
        words(
            "Wireless Power Banks|Kabellose Powerbanks|Batteries externes à induction|"
            "Power bank wireless|Baterías externas inalámbricas"
        ),
        words(
            "Mini Power Banks|Mini-Powerbanks|Mini-batteries externes|Mini power bank|"
            "Minibaterías externas"
        ),
        words(
            "Laptop Power Banks|Laptop-Powerbanks|Batteries externes pour ordinateur|"
            "Power bank per PC|Baterías externas para portátil"
        ),
    ),
    noun=words("Power Bank|Powerbank|Batterie externe|Power bank|Batería externa"),
    base_price=40,
    shown_aspects=(
        w.COLOR,
        aspect(
            "Capacity|Kapazität|Capacité|Capacità|Capacidad",
            "5000 mAh",
            "10000 mAh",
            "15000 mAh",
            "20000 mAh",
        ),
    ),
    habit_aspects=(
        aspect(w.HOUSING_NAME, w.ALUMINUM, w.PLASTIC, w.SILICONE, w.BAMBOO, w.LEATHER),
        aspect(
            "Cell type|Zelltyp|Type de cellule|Tipo di cella|Tipo de celda",
            "Lithium-ion|Lithium-Ionen|Lithium-ion|Ioni di litio|Iones de litio",
            "Polymer|Polymer|Polymère|Polimero|Polímero",
            "LiFePO4",
            "Sodium|Natrium|Sodium|Sodio|Sodio",
            "Graphene|Graphen|Graphène|Grafene|Grafeno",
        ),
    ),
    series_aspect=aspect(
        "Charging power|Ladeleistung|Puissance de charge|Potenza di ricarica|Potencia de carga",
        "10 W",
        "20 W",
        "45 W",
        "65 W",
    ),
    brands=(
        Brand("Voltessa", 3, (0, 4), 2.2, {"Turbina": 3, "Dinamo": 2}),
        Brand("Akkubel", 0, (3, 2), 1.0, {"Sonnen": 1, "Zelle": 0}),
        Brand("Juisan", 2, (2, 1), 0.45, {"Gota": 0, "Chispa": 1}),
    ),
    sentences=(
        words(
            "Charges two devices at the same time.|"
            "Lädt zwei Geräte gleichzeitig.|"
            "Recharge deux appareils en même temps.|"
            "Ricarica due dispositivi contemporaneamente.|"
            "Carga dos dispositivos al mismo tiempo."
        ),
    ),
)

CLOTHING_AND_ELECTRONICS = (JACKET, SHOES, WATCH, HEADPHONES, SPEAKER, POWER_BANK)
