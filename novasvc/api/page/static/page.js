// Makes a page update itself. Without JavaScript it shows the state at which it was loaded.

import { confirmInDialogs } from "./dialog.js";
import { watchFleet } from "./fleet.js";
import { watchNode } from "./node.js";

confirmInDialogs();
if (document.getElementById("grid")) watchFleet();
if (document.querySelector("[data-live]")) watchNode();
