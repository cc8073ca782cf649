// The chosen colours, set before anything is drawn. Loaded as a classic script for that reason.
{
  const chosen = localStorage.getItem("thinkgate.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
