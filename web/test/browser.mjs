/** Chromium for tests and measurements: found where it is, started with sound that nobody hears. */

import { existsSync } from 'node:fs';

import { chromium } from 'playwright-core';

const PLACES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/** The path of a Chromium, or undefined. */
export const executable = PLACES.find((path) => path && existsSync(path));

export function launch() {
  return chromium.launch({
    executablePath: executable,
    args: ['--no-sandbox', '--autoplay-policy=user-gesture-required', '--mute-audio', '--disable-dev-shm-usage'],
  });
}

/**
 * Open the page, and collect what goes wrong in it without being said.
 * @param {import('playwright-core').Browser} browser
 * @param {string} url
 * @param {import('playwright-core').BrowserContextOptions & {before?: () => void}} [options]
 */
export async function open(browser, url, { before, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  /** @type {string[]} */
  const errors = [];
  page.on('pageerror', (error) => errors.push(`${error.name}: ${error.message}`));
  if (before) await page.addInitScript(before);
  await page.goto(url);
  return { page, errors, close: () => context.close() };
}

/** Wait until the model is there. */
export async function ready(page) {
  await page.waitForFunction(() => document.body.dataset.ready !== undefined, null, { timeout: 60_000 });
}
