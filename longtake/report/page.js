// Blind comparison: two videos of different results, names hidden, votes kept in this browser.
const play = document.querySelectorAll("[data-play]");
for (const button of play) {
  button.onclick = () => {
    for (const video of document.querySelectorAll(`#${button.dataset.play} video`)) {
      video.currentTime = 0;
      video.play();
    }
  };
}
const blind = document.getElementById("blind");
if (blind) {
  const clips = JSON.parse(document.getElementById("clips").textContent);
  const names = Object.keys(clips);
  const key = "longtake-votes-" + blind.dataset.key;
  let votes = JSON.parse(localStorage.getItem(key) || "[]");
  let pair = null;
  const pick = (n) => Math.floor(Math.random() * n);
  const source = (id) => document.querySelector(`video[data-id="${id}"]`).src;
  function next() {
    const a = pick(names.length);
    const b = (a + 1 + pick(names.length - 1)) % names.length;
    const i = pick(Math.min(clips[names[a]].length, clips[names[b]].length));
    pair = [names[a], names[b], i];
    const [left, right] = blind.querySelectorAll("video");
    left.src = source(clips[names[a]][i]);
    right.src = source(clips[names[b]][i]);
    left.play();
    right.play();
  }
  function vote(choice) {
    votes.push({ left: pair[0], right: pair[1], clip: pair[2], choice });
    localStorage.setItem(key, JSON.stringify(votes));
    document.getElementById("count").textContent = votes.length + " votes";
    next();
  }
  function reveal() {
    const wins = Object.fromEntries(names.map((name) => [name, { won: 0, lost: 0, even: 0 }]));
    for (const v of votes) {
      const [a, b] = [wins[v.left], wins[v.right]];
      if (!a || !b) continue;
      if (v.choice === "even") { a.even++; b.even++; }
      else { const left = v.choice === "left"; (left ? a : b).won++; (left ? b : a).lost++; }
    }
    document.getElementById("tally").textContent = JSON.stringify(wins, null, 1);
  }
  for (const choice of ["left", "even", "right"]) document.getElementById(choice).onclick = () => vote(choice);
  document.getElementById("reveal").onclick = reveal;
  document.getElementById("forget").onclick = () => {
    votes = [];
    localStorage.removeItem(key);
    document.getElementById("count").textContent = "0 votes";
    document.getElementById("tally").textContent = "";
  };
  document.getElementById("count").textContent = votes.length + " votes";
  next();
}
