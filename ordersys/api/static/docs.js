// Whatever would be loaded from, or told to, another server is switched off; the page's CSP forbids it anyhow.
Scalar.createApiReference('#docs', {
  url: 'openapi.json',
  authentication: { preferredSecurityScheme: 'ApiKeyAuth' },
  withDefaultFonts: false,
  telemetry: false,
  agent: { disabled: true },
  mcp: { disabled: true },
  proxyUrl: '',
  showDeveloperTools: 'never',
  hideClientButton: true,
  persistAuth: false, // a key is gone with the page
  defaultHttpClient: { targetKey: 'shell', clientKey: 'curl' },
});
