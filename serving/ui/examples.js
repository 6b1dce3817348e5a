// Sentences of our own to begin with: a premise, and what follows from it, what may be, what cannot be.

export const EXAMPLES = {
  ar: ["طفلان يلعبان كرة القدم في الحديقة.", "أطفال يلعبون في الخارج.", "الطفلان شقيقان.", "الحديقة خالية."],
  bg: ["Две деца играят футбол в парка.", "Деца играят навън.", "Децата са братя.", "Паркът е празен."],
  de: ["Zwei Kinder spielen Fußball im Park.", "Kinder spielen draußen.", "Die Kinder sind Brüder.", "Der Park ist leer."],
  el: ["Δύο παιδιά παίζουν ποδόσφαιρο στο πάρκο.", "Παιδιά παίζουν έξω.", "Τα παιδιά είναι αδέλφια.", "Το πάρκο είναι άδειο."],
  en: [
    "Two children are playing football in the park.",
    "Children are playing outside.",
    "The children are brothers.",
    "The park is empty.",
  ],
  es: [
    "Dos niños juegan al fútbol en el parque.",
    "Unos niños juegan al aire libre.",
    "Los niños son hermanos.",
    "El parque está vacío.",
  ],
  fr: [
    "Deux enfants jouent au football dans le parc.",
    "Des enfants jouent dehors.",
    "Les enfants sont frères.",
    "Le parc est vide.",
  ],
  hi: ["दो बच्चे पार्क में फुटबॉल खेल रहे हैं।", "बच्चे बाहर खेल रहे हैं।", "बच्चे भाई हैं।", "पार्क खाली है।"],
  ru: ["Двое детей играют в футбол в парке.", "Дети играют на улице.", "Эти дети — братья.", "В парке никого нет."],
  sw: ["Watoto wawili wanacheza mpira bustanini.", "Watoto wanacheza nje.", "Watoto hao ni ndugu.", "Hakuna mtu bustanini."],
  th: ["เด็กสองคนกำลังเล่นฟุตบอลในสวนสาธารณะ", "เด็กๆ กำลังเล่นอยู่ข้างนอก", "เด็กทั้งสองเป็นพี่น้องกัน", "ไม่มีใครอยู่ในสวนสาธารณะ"],
  tr: ["İki çocuk parkta futbol oynuyor.", "Çocuklar dışarıda oynuyor.", "Çocuklar kardeş.", "Park boş."],
  ur: ["دو بچے پارک میں فٹ بال کھیل رہے ہیں۔", "بچے باہر کھیل رہے ہیں۔", "بچے بھائی ہیں۔", "پارک خالی ہے۔"],
  vi: [
    "Hai đứa trẻ đang chơi bóng đá trong công viên.",
    "Trẻ em đang chơi ngoài trời.",
    "Hai đứa trẻ là anh em.",
    "Công viên không có ai.",
  ],
  zh: ["两个孩子正在公园里踢足球。", "孩子们在户外玩耍。", "两个孩子是兄弟。", "公园里空无一人。"],
};

/** The example of the chosen language, or of the first served one that has any; null if there is none. */
export function exampleFor(chosen, served) {
  const language = (chosen ? [chosen] : served).find((code) => code in EXAMPLES);
  return language ? EXAMPLES[language] : null;
}

/** Show the button while there is an example to offer, and give it to `fill`. */
export function offerExample(button, select, onLook, fill) {
  let served = [];
  const update = () => {
    button.hidden = exampleFor(select.value, served) === null;
  };
  onLook((catalogue) => {
    if (catalogue) served = catalogue.models.map(({ language }) => language);
    update();
  });
  select.addEventListener("change", update);
  button.addEventListener("click", () => fill(exampleFor(select.value, served)));
}
