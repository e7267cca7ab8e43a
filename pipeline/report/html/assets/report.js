"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
document.getElementById("report").textContent = report.title;
