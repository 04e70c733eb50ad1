// What must hold of a page, asked in the browser that shows it. Each question returns what breaks it, in words.
window.looks = (() => {
  const CONTROLS = 'button, input:not([type=hidden]), select, textarea, a[href], summary, [role=button], [role=slider], [role=combobox], [role=tab], [role=switch]'
  const seen = (element) => element.checkVisibility({opacityProperty: true, visibilityProperty: true}) && element.getClientRects().length > 0
  const hidden = (element) => element.closest('[aria-hidden=true], [inert], .modebar, [data-testid=stStatusWidget]') || element.disabled
  const words = (element) => element.outerHTML.slice(0, 200)

  // A speck of an input may stand under a label or a slider, which is where people see it.
  const place = (element) => (element.matches('[type=checkbox], [type=radio], [type=range]') && element.closest('label, .stSlider')) || element
  const controls = () => [...document.querySelectorAll(CONTROLS)].filter((element) => !hidden(element) && seen(place(element)))

  const sideways = () =>
    Math.max(...[document.documentElement, ...document.querySelectorAll('[data-testid=stMain]')].map((e) => e.scrollWidth - e.clientWidth))

  const overlaps = () => {
    const header = document.querySelector('[data-testid=stHeader]')
    const boxes = [...new Set(controls().map(place))].filter((e) => !header?.contains(e)).map((e) => [e, e.getBoundingClientRect()])
    const found = []
    boxes.forEach(([a, p], i) =>
      boxes.slice(i + 1).forEach(([b, q]) => {
        const width = Math.min(p.right, q.right) - Math.max(p.left, q.left)
        const height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)
        if (width > 2 && height > 2 && !a.contains(b) && !b.contains(a)) found.push(`${words(a)} and ${words(b)}`)
      }),
    )
    return found
  }

  const unnamed = () => {
    axe.setup(document)
    const found = controls().filter((element) => !axe.commons.text.accessibleText(element).trim()).map(words)
    axe.teardown()
    return found
  }

  // Relative luminance and contrast as WCAG 2 defines them.
  const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  const luminance = (rgb) => rgb.map((value) => channel(value / 255)).reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0)
  const parsed = (colour) => [...colour.matchAll(/[\d.]+/g)].map((match) => Number(match[0]))

  // Text of charts on the paper behind them; text inside bars and cells has a paper of its own, that of cells test_contrast.py looks at.
  const inCells = (text) => text.closest('.scatterlayer')?.parentElement.querySelector('.hm')
  const faint = () => {
    const paper = parsed(getComputedStyle(document.querySelector('.stApp')).backgroundColor).slice(0, 3)
    const found = []
    for (const text of document.querySelectorAll('.js-plotly-plot svg text')) {
      if (!text.textContent.trim() || text.closest('.bars, .hoverlayer') || inCells(text) || !seen(text)) continue
      const style = getComputedStyle(text)
      const [red, green, blue, alpha = 1] = parsed(style.fill)
      let opacity = alpha * style.fillOpacity
      for (let e = text; e && !e.matches('.js-plotly-plot'); e = e.parentElement) opacity *= getComputedStyle(e).opacity
      const mixed = [red, green, blue].map((value, i) => opacity * value + (1 - opacity) * paper[i])
      const [low, high] = [luminance(mixed), luminance(paper)].sort((a, b) => a - b)
      const contrast = (high + 0.05) / (low + 0.05)
      if (contrast < 4.5) found.push(`'${text.textContent}' ${style.fill} ${contrast.toFixed(2)}`)
    }
    return [...new Set(found)]
  }

  // One of a group of choices takes the focus for all of them; arrows go on from there.
  const reached = new Set()
  let start, rounds
  const watch = () => {
    document.activeElement?.blur()
    reached.clear()
    start = undefined
    rounds = 0
    document.addEventListener('focusin', ({target}) => {
      reached.add(target)
      if (target === start) rounds += 1
      start ??= target
    })
  }
  const around = () => rounds > 0
  const group = (element) => element.closest('[role=radiogroup], [role=group], [role=tablist]')
  const missed = () =>
    controls()
      .filter((e) => !e.matches('[data-testid^=stNumberInputStep]')) // what they do the arrow keys do in the number's field
      .filter((e) => ![...reached].some((r) => r === e || e.contains(r) || r.contains(e) || (group(e) && group(e).contains(r))))
      .map(words)

  return {sideways, overlaps, unnamed, faint, watch, around, missed}
})()
