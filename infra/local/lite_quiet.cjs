// Lite writes whole errors to its log, and the database's errors quote what they were given: e-mail addresses,
// passwords, tokens. Loaded before it, this leaves of an error what it is and its SQLSTATE.
"use strict";

const write = console.error.bind(console);
const shown = (word) => (word instanceof Error ? `${word.name} ${word.code ?? ""}`.trim() : word);

console.error = (...words) => write(...words.map(shown));
