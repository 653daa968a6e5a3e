// Before anything is drawn: the theme that was chosen on this machine, if one was.
try {
  const chosen = localStorage.getItem("modelnet-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // without storage the system's theme it is
}
