// Makes a page live. Without it everything is there, too, as it was when the page was loaded.

import { confirmInDialogs } from "./dialog.js";
import { watchFleet } from "./fleet.js";
import { watchNode } from "./node.js";

confirmInDialogs();
if (document.getElementById("grid")) watchFleet();
if (document.getElementById("node")) watchNode();
