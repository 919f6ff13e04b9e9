// Lite writes whole errors to its log, and the database's errors quote what they were given: e-mail addresses,
// passwords, tokens. Loaded before it, this leaves of an error what it is and its SQLSTATE.
//
// Three errors belong to every start (lite.py, demote); each is explained, once. Whoever sees one later should wonder.
"use strict";

const OF_THE_START = [
  {
    fits: (error) => error.message === "Could not find the table 'public.no_such_table' in the schema cache",
    why: "our own question at the start, by which Lite learns the tables",
  },
  {
    fits: (error) => error.code === "42501" && /^GRANT [\w "]+ TO anon, authenticated, service_role$/.test(error.query),
    why: "at its first request Lite grants the API roles everything; it may not, as on hosted, and goes on without",
  },
  {
    fits: (error) => error.code === "42501" && error.message === "permission denied for function get_doorkey_health",
    why: "our own question at the start, whether anon is refused what is the service key's",
  },
];

const explained = (error) => {
  const at = OF_THE_START.findIndex((expected) => expected.fits(error));
  return at < 0 ? "" : `(all is well: ${OF_THE_START.splice(at, 1)[0].why})`;
};

const write = console.error.bind(console);
const shown = (word) =>
  word instanceof Error ? [word.name, word.code, explained(word)].filter(Boolean).join(" ") : word;

console.error = (...words) => write(...words.map(shown));
